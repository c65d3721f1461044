#!/bin/sh
# stress.sh SECONDS VCPUS: stress-ng with verification, one stressor after the other, several workers each. One line
# `stress NAME ok` or `stress NAME failed-STATUS` each.
seconds=$1
workers=$2
cd /tmp || exit 1
for stressor in cpu matrix vecmath vecfp memcpy memthrash vm mmap fork vfork clone exec switch pipe futex sem sigq fault \
	tlb-shootdown atomic spinmem lockbus mutex crypt hash zlib bsearch qsort radixsort str jpeg funccall branch \
	bad-altstack mprotect membarrier; do
	if timeout -k 5 $((seconds * 10 + 30)) stress-ng --verify --"$stressor" "$workers" --timeout "$seconds" \
		--vm-bytes 64M --temp-path /tmp >/tmp/log 2>&1; then
		echo "stress $stressor ok"
	else
		status=$?
		if grep -q -e 'unrecognized option' -e 'No such stressor' /tmp/log; then
			echo "# stress-ng has no $stressor"
		else
			echo "stress $stressor failed-$status"
			tail -n 5 /tmp/log
		fi
	fi
done
