sha1sum corpus
b2sum corpus
cksum corpus
base64 corpus | tail -5
tr a-z A-Z < text | cut -d' ' -f2-4 | uniq -c | tail
od -t fD -N 800 corpus
factor 1000000016000000063 2147483647
seq 0.1 0.3 9
numfmt --to=iec 123456789
