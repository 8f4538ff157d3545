sort text
sort -k3,3 -k1nr text
sort -u -r -t ' ' -k8n text
sort -R --random-source=corpus text
