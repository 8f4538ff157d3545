xz -6 -T1 -c < corpus
xz -7e -T1 -c < corpus | xz -dc
xz --format=lzma -1 -c < corpus
