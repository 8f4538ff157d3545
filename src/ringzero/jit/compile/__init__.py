"""From functions of the native language to LLVM IR and objects; knows neither guest nor host."""
