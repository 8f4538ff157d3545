"""Guest instruction sets, each instruction described once. Never sees LLVM. May import: the ground, core, native."""
