"""Guest instruction sets, described once; never sees LLVM. May import: ground, core, native."""
