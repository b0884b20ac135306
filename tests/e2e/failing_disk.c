// Preloaded into mainstayd by disk.py and cluster_faults.py: while the file named by FAILING_DISK exists, fdatasync
// answers its content as errno ("5": EIO) without doing anything, or does it after so many milliseconds ("d700"), for
// file descriptors whose path contains FAILING_DISK_PATH.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int injected(int fd) {
    const char* control = getenv("FAILING_DISK");
    const char* wanted = getenv("FAILING_DISK_PATH");
    if (!control || !wanted) return 0;
    char link[64], path[4096], text[16] = "";
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    const ssize_t length = readlink(link, path, sizeof path - 1);
    if (length <= 0) return 0;
    path[length] = 0;
    if (!strstr(path, wanted)) return 0;
    const int file = open(control, O_RDONLY | O_CLOEXEC);
    if (file < 0) return 0;
    const ssize_t got = read(file, text, sizeof text - 1);
    close(file);
    if (got > 0 && text[0] == 'd') {
        usleep((useconds_t)atoi(text + 1) * 1000);
        return 0;
    }
    return got > 0 ? atoi(text) : 0;
}

int fdatasync(int fd) {
    static int (*real)(int);
    if (!real) real = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    const int error = injected(fd);
    if (error == 0) return real(fd);
    errno = error;
    return -1;
}
