/* LD_PRELOAD: counts the calls on files below one folder, and ends, fails, shortens or stops some.
 *
 * A process loads it and is left alone until it calls shim_arm(). From then on every call of one of
 * the kinds asked for, on a path below the folder (or a descriptor that was opened there), is one
 * step; what happens at step N is the action. Python's tests/faults/shim.py has the same numbers.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OPEN = 1, CREATE = 2, READ = 4, WRITE = 8, SYNC = 16, SYNC_FOLDER = 32, RENAME = 64,
       UNLINK = 128, MKDIR = 256, TRUNCATE = 512, ALLOCATE = 1024, CLOSE = 2048, LOCK = 4096 };
enum { COUNT, KILL_BEFORE, KILL_AFTER, TEAR, FAIL, FAIL_ON, SHORT, INTERRUPT, STOP, PRETEND, SIGNAL };
static const char *NAMES[] = { "open", "create", "read", "write", "fsync", "fsync-folder", "rename",
                               "unlink", "mkdir", "truncate", "allocate", "close", "flock" };

static char prefix[PATH_MAX];
static size_t prefix_length;
static int mask, action, code, pretended, log_fd = -1;
static long at;
static unsigned seed;
static atomic_long steps;
static atomic_int armed;

#define REAL(name) ((__typeof__(&name))real(#name))
static void *real(const char *name) { return dlsym(RTLD_NEXT, name); }

/* Arms; (folder, kinds, action, step, errno, seed, log file or ""). 0, or -1. */
int shim_arm(const char *folder, int kinds, int what, long step, int error, unsigned start,
             const char *log) {
    if (strlen(folder) >= sizeof prefix) return -1;
    strcpy(prefix, folder);
    prefix_length = strlen(prefix);
    mask = kinds, action = what, at = step, code = error, seed = start;
    if (*log) log_fd = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    atomic_store(&steps, 0);
    atomic_store(&armed, 1);
    return *log && log_fd < 0 ? -1 : 0;
}

/* Besides the action, steps of these kinds (fsync, fsync-folder) do nothing and say they did. */
void shim_pretend(int kinds) { pretended = kinds; }

long shim_steps(void) { return atomic_load(&steps); }

static int below(const char *path) {
    return path && !strncmp(path, prefix, prefix_length)
        && (path[prefix_length] == '/' || !path[prefix_length]);
}

static int path_of(int fd, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    long n = syscall(SYS_readlinkat, AT_FDCWD, link, path, PATH_MAX - 1);
    if (n < 0) return 0;
    path[n] = 0;
    return 1;
}

static void noted(int kind, const char *path) {
    char line[PATH_MAX + 32];
    if (log_fd < 0) return;
    int n = snprintf(line, sizeof line, "%s %s\n", NAMES[__builtin_ctz(kind)], path);
    syscall(SYS_write, log_fd, line, (size_t)n);
}

/* The number of this step, or 0 if the call is none. */
static long step(int kind, const char *path) {
    if (!atomic_load(&armed) || !(mask & kind) || !below(path)) return 0;
    noted(kind, path);
    return atomic_fetch_add(&steps, 1) + 1;
}

static long step_fd(int kind, int fd) {
    char path[PATH_MAX];
    if (!atomic_load(&armed) || !(mask & kind) || !path_of(fd, path)) return 0;
    return step(kind, path);
}

/* A number for step n, ever the same for a seed. Any but the last bits of rand_r will do. */
static long drawn(long n) {
    unsigned mine = seed + (unsigned)n;
    return rand_r(&mine) >> 4;
}

/* What is to be done before step n: nonzero if the call is not to be made, and fails with errno. */
static int before(long n) {
    if (!n) return 0;
    int here = n == at;
    if (action == KILL_BEFORE && here) raise(SIGKILL);
    if (action == STOP) raise(SIGSTOP);
    if (action == SIGNAL && here) kill(getpid(), code); /* as from outside: the main thread's, if it takes it */
    if ((action == FAIL && here) || (action == FAIL_ON && n >= at)) { errno = code; return 1; }
    if (action == INTERRUPT && (seed ? drawn(n) : n) % at == 0) { errno = EINTR; return 1; }
    return 0;
}

static void after(long n) {
    if (n && n == at && (action == KILL_AFTER || action == TEAR)) {
        int kept = errno;
        raise(SIGKILL);
        errno = kept;
    }
}

#define GUARD(n, made) do { \
    long n_ = (n); \
    if (before(n_)) return -1; \
    __typeof__(made) result_ = (made); \
    after(n_); \
    return result_; \
} while (0)

/* Bytes to move of `length`: fewer if calls are shortened or this one is torn. Direct I/O moves pages. */
static size_t moved(long n, int fd, size_t length) {
    int torn = action == TEAR && n == at;
    if (!n || !(torn || action == SHORT) || !length) return length;
    size_t unit = fcntl(fd, F_GETFL) & O_DIRECT ? 4096 : 1;
    size_t most = length / unit;
    if (most < 2) return length;
    if (torn) return most / 2 * unit;
    unsigned mine = seed + (unsigned)n;
    return (1 + (size_t)rand_r(&mine) % most) * unit;
}

static ssize_t vectored(int kind, int fd, const struct iovec *v, int count, off64_t offset) {
    static ssize_t (*get)(int, const struct iovec *, int, off64_t);
    static ssize_t (*put)(int, const struct iovec *, int, off64_t);
    if (!get) get = real("preadv64"), put = real("pwritev64");
    long n = step_fd(kind, fd);
    if (before(n)) return -1;
    struct iovec one;
    if (count == 1) {
        one = *v;
        one.iov_len = moved(n, fd, one.iov_len);
        v = &one;
    }
    ssize_t result = (kind == READ ? get : put)(fd, v, count, offset);
    after(n);
    return result;
}

ssize_t preadv(int fd, const struct iovec *v, int c, off_t o) { return vectored(READ, fd, v, c, o); }
ssize_t preadv64(int fd, const struct iovec *v, int c, off64_t o) { return vectored(READ, fd, v, c, o); }
ssize_t pwritev(int fd, const struct iovec *v, int c, off_t o) { return vectored(WRITE, fd, v, c, o); }
ssize_t pwritev64(int fd, const struct iovec *v, int c, off64_t o) { return vectored(WRITE, fd, v, c, o); }

/* Python calls these where the C library has them, always with flags 0. */
ssize_t preadv2(int fd, const struct iovec *v, int c, off_t o, int flags) { (void)flags; return vectored(READ, fd, v, c, o); }
ssize_t preadv64v2(int fd, const struct iovec *v, int c, off64_t o, int flags) { (void)flags; return vectored(READ, fd, v, c, o); }
ssize_t pwritev2(int fd, const struct iovec *v, int c, off_t o, int flags) { (void)flags; return vectored(WRITE, fd, v, c, o); }
ssize_t pwritev64v2(int fd, const struct iovec *v, int c, off64_t o, int flags) { (void)flags; return vectored(WRITE, fd, v, c, o); }

#define TRANSFER(type, name, kind, args, call) \
    type name args { \
        static __typeof__(&name) made; \
        if (!made) made = real(#name); \
        long n = step_fd(kind, fd); \
        if (before(n)) return -1; \
        length = moved(n, fd, length); \
        type result = made call; \
        after(n); \
        return result; \
    }
TRANSFER(ssize_t, read, READ, (int fd, void *b, size_t length), (fd, b, length))
TRANSFER(ssize_t, write, WRITE, (int fd, const void *b, size_t length), (fd, b, length))
TRANSFER(ssize_t, pread, READ, (int fd, void *b, size_t length, off_t o), (fd, b, length, o))
TRANSFER(ssize_t, pread64, READ, (int fd, void *b, size_t length, off64_t o), (fd, b, length, o))
TRANSFER(ssize_t, pwrite, WRITE, (int fd, const void *b, size_t length, off_t o), (fd, b, length, o))
TRANSFER(ssize_t, pwrite64, WRITE, (int fd, const void *b, size_t length, off64_t o), (fd, b, length, o))

static int opened(int folder, const char *path, int flags, mode_t mode) {
    char whole[PATH_MAX];
    if (*path != '/' && folder != AT_FDCWD && path_of(folder, whole)) {
        size_t n = strlen(whole);
        snprintf(whole + n, sizeof whole - n, "/%s", path);
    } else snprintf(whole, sizeof whole, "%s", path);
    long n = step(flags & O_CREAT ? CREATE : OPEN, whole);
    if (before(n)) return -1;
    int fd = syscall(SYS_openat, folder, path, flags, mode);
    after(n);
    return fd;
}

#define MODE(flags) \
    mode_t mode = 0; \
    if ((flags) & (O_CREAT | __O_TMPFILE)) { \
        va_list rest; \
        va_start(rest, flags); \
        mode = va_arg(rest, mode_t); \
        va_end(rest); \
    }
int open(const char *path, int flags, ...) { MODE(flags) return opened(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE(flags) return opened(AT_FDCWD, path, flags, mode); }
int openat(int d, const char *path, int flags, ...) { MODE(flags) return opened(d, path, flags, mode); }
int openat64(int d, const char *path, int flags, ...) { MODE(flags) return opened(d, path, flags, mode); }

int close(int fd) {
    long n = step_fd(CLOSE, fd);
    int failed = before(n);
    int kept = errno;
    int result = REAL(close)(fd); /* a close that fails has closed */
    if (failed) { errno = kept; return -1; }
    after(n);
    return result;
}

static int synced(int fd, int data) {
    char path[PATH_MAX];
    struct stat is;
    if (!atomic_load(&armed) || !path_of(fd, path)) return data ? REAL(fdatasync)(fd) : REAL(fsync)(fd);
    int folder = !fstat(fd, &is) && S_ISDIR(is.st_mode);
    int kind = folder ? SYNC_FOLDER : SYNC;
    long n = step(kind, path);
    if (before(n)) return -1;
    int result = n && (action == PRETEND || pretended & kind) ? 0 : data ? REAL(fdatasync)(fd) : REAL(fsync)(fd);
    after(n);
    return result;
}
int fsync(int fd) { return synced(fd, 0); }
int fdatasync(int fd) { return synced(fd, 1); }

int flock(int fd, int operation) {
    long n = step_fd(LOCK, fd);
    if (before(n)) return -1;
    int result = n && action == PRETEND ? 0 : REAL(flock)(fd, operation);
    after(n);
    return result;
}

int rename(const char *a, const char *b) { GUARD(step(RENAME, b), REAL(rename)(a, b)); }
int unlink(const char *path) { GUARD(step(UNLINK, path), REAL(unlink)(path)); }
int rmdir(const char *path) { GUARD(step(UNLINK, path), REAL(rmdir)(path)); }
int unlinkat(int folder, const char *path, int flags) {
    char whole[PATH_MAX];
    if (*path == '/' || folder == AT_FDCWD || !path_of(folder, whole)) *whole = 0;
    size_t n = strlen(whole);
    snprintf(whole + n, sizeof whole - n, "%s%s", n ? "/" : "", path);
    GUARD(step(UNLINK, whole), REAL(unlinkat)(folder, path, flags));
}
int mkdir(const char *path, mode_t mode) { GUARD(step(MKDIR, path), REAL(mkdir)(path, mode)); }
int ftruncate(int fd, off_t n) { GUARD(step_fd(TRUNCATE, fd), REAL(ftruncate)(fd, n)); }
int ftruncate64(int fd, off64_t n) { GUARD(step_fd(TRUNCATE, fd), REAL(ftruncate64)(fd, n)); }
/* Returns its error. */
static int allocated(int fd, off64_t from, off64_t length) {
    long n = step_fd(ALLOCATE, fd);
    if (before(n)) return errno;
    int result = REAL(posix_fallocate64)(fd, from, length);
    after(n);
    return result;
}
int posix_fallocate(int fd, off_t from, off_t length) { return allocated(fd, from, length); }
int posix_fallocate64(int fd, off64_t from, off64_t length) { return allocated(fd, from, length); }
