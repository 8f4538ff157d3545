"""Native code through LLVM, whose only importer it is: compiler, decoder, translator, cache."""
