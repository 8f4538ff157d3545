gzip -9nc < corpus
gzip -1nc < corpus
gzip -6nc < corpus | gzip -dc
