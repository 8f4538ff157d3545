for digest in sha256 sha512 sha3-256 md5 blake2b512; do
    openssl dgst -$digest corpus
done
for cipher in aes-256-cbc aes-128-ctr chacha20 camellia-128-cbc; do
    openssl enc -$cipher -pbkdf2 -S 0001020304050607 -pass pass:ringzero -in corpus |
        openssl dgst -sha256
done
openssl prime 1000003 2305843009213693951 6700417 6700418
