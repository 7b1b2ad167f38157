/* For LD_PRELOAD: the N-th call that changes something below a folder fails, and so do some behind it. A sync that does
   not fail does nothing, for speed: nobody cuts the power here.

   fail_arm(folder, at, times, code): count from now on; calls number at, at + 1, … at + times - 1 fail with errno code
   fail_seen(): calls counted since then
   fail_reused(): writes and syncs of a file one of whose syncs had failed: after that its pages count as clean, and a
   second sync would succeed without having written them. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char root[4096];
static long seen, at, times, reused;
static int code;
static struct { dev_t dev; ino_t ino; } doubtful[4096];
static int n_doubtful;

void fail_arm(const char *folder, long first, long how_many, int with) {
    snprintf(root, sizeof root, "%s", folder);
    seen = 0, at = first, times = how_many, code = with, n_doubtful = 0;
}
long fail_seen(void) { return seen; }
long fail_reused(void) { return reused; }

static int is_below(const char *path) { return root[0] && strncmp(path, root, strlen(root)) == 0; }

static int is_file_below(int file) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) return 0;
    path[n] = 0;
    return is_below(path);
}

static int is_path_below(int folder, const char *path) {
    return path[0] == '/' || folder == AT_FDCWD ? is_below(path) : is_file_below(folder);
}

static int fails(void) {
    long number = __sync_add_and_fetch(&seen, 1);
    if (number < at || number >= at + times) return 0;
    errno = code;
    return 1;
}

static int place(int file, int forget) {
    struct stat status;
    if (fstat(file, &status) || !S_ISREG(status.st_mode)) return -1;
    for (int k = 0; k < n_doubtful; k++)
        if (doubtful[k].dev == status.st_dev && doubtful[k].ino == status.st_ino) {
            if (forget) doubtful[k].ino = 0;
            return k;
        }
    return -1;
}

static void doubt(int file) {
    struct stat status;
    if (fstat(file, &status) || !S_ISREG(status.st_mode) || n_doubtful == 4096) return;
    doubtful[n_doubtful].dev = status.st_dev, doubtful[n_doubtful++].ino = status.st_ino;
}

static int opened(int file, int flags) { /* an empty file is a new one, whose inode number may have been another's */
    struct stat status;
    if (file >= 0 && (flags & (O_WRONLY | O_RDWR)) && fstat(file, &status) == 0 && status.st_size == 0) place(file, 1);
    return file;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

#define ON_FILE(name, ...)                               \
    {                                                               \
        if (is_file_below(file)) {                                  \
            if (place(file, 0) >= 0) __sync_add_and_fetch(&reused, 1); \
            if (fails()) return -1;                                 \
        }                                                           \
        return REAL(name)(__VA_ARGS__);                             \
    }

ssize_t write(int file, const void *data, size_t n) ON_FILE(write, file, data, n)
ssize_t pwrite(int file, const void *data, size_t n, off_t off) ON_FILE(pwrite, file, data, n, off)
ssize_t pwrite64(int file, const void *data, size_t n, off64_t off) ON_FILE(pwrite64, file, data, n, off)
int ftruncate(int file, off_t n) ON_FILE(ftruncate, file, n)
int ftruncate64(int file, off64_t n) ON_FILE(ftruncate64, file, n)

#define SYNC(name)                                                  \
    int name(int file) {                                            \
        if (is_file_below(file)) {                                  \
            if (place(file, 0) >= 0) __sync_add_and_fetch(&reused, 1); \
            if (!fails()) return 0;                                 \
            doubt(file);                                            \
            errno = code;                                           \
            return -1;                                              \
        }                                                           \
        return REAL(name)(file);                                    \
    }
SYNC(fsync)
SYNC(fdatasync)

#define OPEN(name)                                                  \
    int name(const char *path, int flags, ...) {                    \
        va_list more;                                               \
        va_start(more, flags);                                      \
        mode_t mode = flags & O_CREAT ? va_arg(more, mode_t) : 0;   \
        va_end(more);                                               \
        if (is_path_below(AT_FDCWD, path) && fails()) return -1;    \
        return opened(REAL(name)(path, flags, mode), flags);        \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                \
    int name(int folder, const char *path, int flags, ...) {        \
        va_list more;                                               \
        va_start(more, flags);                                      \
        mode_t mode = flags & O_CREAT ? va_arg(more, mode_t) : 0;   \
        va_end(more);                                               \
        if (is_path_below(folder, path) && fails()) return -1;      \
        return opened(REAL(name)(folder, path, flags, mode), flags); \
    }
OPENAT(openat)
OPENAT(openat64)

int mkdir(const char *path, mode_t mode) {
    return is_path_below(AT_FDCWD, path) && fails() ? -1 : REAL(mkdir)(path, mode);
}
int mkdirat(int folder, const char *path, mode_t mode) {
    return is_path_below(folder, path) && fails() ? -1 : REAL(mkdirat)(folder, path, mode);
}
int unlink(const char *path) { return is_path_below(AT_FDCWD, path) && fails() ? -1 : REAL(unlink)(path); }
int unlinkat(int folder, const char *path, int flags) {
    return is_path_below(folder, path) && fails() ? -1 : REAL(unlinkat)(folder, path, flags);
}
int rename(const char *a, const char *b) { return is_path_below(AT_FDCWD, a) && fails() ? -1 : REAL(rename)(a, b); }
int renameat(int folder, const char *a, int other, const char *b) {
    return is_path_below(folder, a) && fails() ? -1 : REAL(renameat)(folder, a, other, b);
}
