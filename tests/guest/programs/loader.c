// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * loader - load a kernel module, once: busybox's modprobe tries twice, in two ways.
 */
#include "memory.h"

int main(int argc, char **argv)
{
	int fd;

	if (argc < 2 || argc > 3) {
		fputs("usage: loader FILE.ko [PARAMETERS]\n", stderr);
		return 2;
	}
	fd = open(argv[1], O_RDONLY | O_CLOEXEC);
	if (fd < 0 || syscall(SYS_finit_module, fd, argc > 2 ? argv[2] : "", 0))
		fail_errno(argv[1]);
	return 0;
}
