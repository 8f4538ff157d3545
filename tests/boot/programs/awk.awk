{ n[length($1)]++; s += $NF; t[$2] += $NF }
END {
    for (k in n) print k, n[k] | "sort -n"
    close("sort -n")
    printf "%.17g %.17g %.17g %d\n", s / 7, sin(s), exp(1.5) ^ log(7), length(t)
    print substr("abcdef", 2, 3), toupper("x"), index("foobar", "bar"), 2 ^ 60, -7 % 3
}
