-- Two processes for some seconds: functions that are made, become hot, are compiled, and go.
-- Prints how often each came to the right result; exits with 1 at a wrong one.
local seconds, rounds, loops = tonumber(arg[1]), tonumber(arg[2]), tonumber(arg[3])
local seed = tonumber(arg[6])

if not seed then
  local words = table.concat({ arg[1], arg[2], arg[3], arg[4], arg[5] }, " ")
  local running = {}
  for n = 1, 2 do
    running[n] = io.popen("luajit " .. arg[0] .. " " .. words .. " " .. n)
  end
  local failed = false
  for n = 1, 2 do
    local text = running[n]:read("*a")
    io.write(text)
    failed = failed or text == "" or text:find("wrong") ~= nil
  end
  os.exit(failed and 1 or 0)
end

-- Products of 2^32 and the factors are exact in a double.
local function pass(value)
  for r = 0, rounds - 1 do
    local body = string.format([[
      local value, bxor, rshift = ..., bit.bxor, bit.rshift
      for i = 1, %d do
        value = (value * %d + %d) %% 4294967296
        value = bxor(value, rshift(value, %d)) %% 4294967296
      end
      return value]], loops, 1664525 + 2 * r, 1013904223 + r, 1 + r % 15)
    value = loadstring(body)(value)
    local sum = 0
    for i = 0, 999 do
      sum = (sum + value + i) % 4294967296
    end
    value = sum
  end
  return value
end

local wanted = tonumber(arg[3 + seed])
local finish = os.time() + seconds
local count = 0
repeat
  local value = pass(seed)
  if value ~= wanted then
    print(string.format("wrong in pass %d: %.0f", count, value))
    os.exit(1)
  end
  count = count + 1
until os.time() >= finish
print(count)
