#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
#
# Make one relocatable object out of a Rust static library, fit for a kernel
# module: only what the exports reach, sections merged, nothing undefined that
# is not on the list.
#
# usage: link-rust.sh ARCHIVE OUTPUT EXPORTS IMPORTS
#
# EXPORTS and IMPORTS are files with one symbol a line, # starts a comment.
# AR, LD, NM and OBJCOPY come from the environment, as Kbuild exports them.
set -eu

archive=$1
output=$2
exports=$3
imports=$4
text_limit=86016
here=$(cd "$(dirname "$0")" && pwd)
: "${AR:=ar}" "${LD:=ld}" "${NM:=nm}" "${OBJCOPY:=objcopy}"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

symbols() {
	sed -e 's/#.*//' -e 's/[[:space:]]//g' -e '/^$/d' "$1"
}

# The compiler's run-time library stays out: the kernel has its own memcpy(),
# and whatever else would be needed has no business in a kernel.
members=$($AR t "$archive" 2>/dev/null | grep -v '^compiler_builtins')
cp "$archive" "$work/lib.a"
# shellcheck disable=SC2086 # a list, names of rustc have no blanks
(cd "$work" && $AR x lib.a $members 2>/dev/null)

roots=
for symbol in $(symbols "$exports"); do
	roots="$roots -u $symbol"
done
# shellcheck disable=SC2086
(cd "$work" && $LD -r --gc-sections $roots \
	-T "$here/merge-sections.lds" -o linked.o $members)

undefined() {
	$NM --undefined-only "$1" 2>/dev/null | awk '{ print $2 }' | sort -u
}

# What was dropped leaves its undefined symbols behind.
$OBJCOPY --strip-unneeded "$work/linked.o" "$work/needed.o"
undefined "$work/needed.o" >"$work/needed"
undefined "$work/linked.o" | comm -23 - "$work/needed" >"$work/unneeded"

symbols "$exports" >"$work/keep"
$OBJCOPY --discard-locals --keep-global-symbols="$work/keep" \
	--strip-symbols="$work/unneeded" "$work/linked.o" "$work/out.o"

# An export that the library does not define would only be noticed by modpost.
$NM --defined-only -g "$work/out.o" 2>/dev/null | awk '{ print $3 }' |
	sort -u >"$work/defined"
missing=$(sort -u "$work/keep" | comm -23 - "$work/defined")
if [ -n "$missing" ]; then
	# shellcheck disable=SC2086 # one line, a word for each symbol
	echo "error: not defined by the Rust library:" $missing >&2
	exit 1
fi

# The panic handler calls a symbol that nobody defines and that is not on the
# list: code that can panic does not link.
symbols "$imports" | sort -u >"$work/allowed"
extra=$(comm -23 "$work/needed" "$work/allowed")
if [ -n "$extra" ]; then
	# shellcheck disable=SC2086 # one line, a word for each symbol
	echo "error: the Rust object needs what no kernel has" \
		"(ptdma_panic: code that can panic):" $extra >&2
	exit 1
fi

# What the kernel keeps resident for this: a promise of the README.
$OBJCOPY -O binary -j .text "$work/out.o" "$work/text"
bytes=$(wc -c <"$work/text")
if [ "$bytes" -ge "$text_limit" ]; then
	echo "error: the Rust code is $bytes bytes, $text_limit or more" >&2
	exit 1
fi

mv "$work/out.o" "$output"
