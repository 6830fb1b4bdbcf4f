#!/bin/sh
# Prints the Python that .venv is created with: the version that was tested, else a newer one. Of several of a version, the first on PATH,
# or another one that is clearly faster: a build without optimizations, such as pyenv's by default, takes a third longer for what isn't torch.
MEASURE='
import os, sys, sysconfig, time, timeit, venv, ensurepip
if sys.version_info < (3, 11):
    sys.exit(1)
class Counter:
    sum = 0
    def add(self, number):
        return self.sum + number
def count():
    counter = Counter()
    for number in range(30_000):
        if isinstance(counter.add(number), int):
            found = {"number": number}
compiles = os.path.isfile(os.path.join(sysconfig.get_path("include"), "Python.h"))  # for torch.compile
print(int(1e6 * min(timeit.repeat(count, timer=time.process_time, number=1, repeat=15))), int(compiles))
'
for name in python3.11 python3.12 python3.13 python3; do
    chosen='' least=''
    IFS=:
    for directory in $PATH; do
        IFS=' '
        [ -x "$directory/$name" ] && found=$("$directory/$name" -c "$MEASURE" 2>/dev/null) || continue
        time=${found% *} compiles=${found#* }
        if [ -z "$chosen" ]; then
            chosen=$directory/$name least=$time
        elif [ $((time * 10)) -lt $((least * 9)) ] && [ "$compiles" = 1 ]; then
            chosen=$directory/$name least=$time
        fi
    done
    [ -n "$chosen" ] && echo "$chosen" && exit
done
exit 1
