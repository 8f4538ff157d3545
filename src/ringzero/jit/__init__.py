"""Native code through LLVM: compiler, decoder, interpreter, translator, code cache. The only importer of llvmlite."""
