"""x86 guests: `native` is the compiled engine, `vm` and `vcpu` the contract, `reveal` its code."""
