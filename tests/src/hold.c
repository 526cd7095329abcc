/* Holds calls of a program: see hold.rs. Loaded before the C library, whose calls of these names it takes the place of.
 *
 * The file $HOLD/calls has the names of those that are to be held, one in a line. While a name is there, each of its calls
 * waits; before that it is noted in $HOLD/held, with who makes it: "loop" is the first thread of the process.
 * Its own calls go to the kernel directly.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <grp.h>
#include <netdb.h>
#include <pwd.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

static int raw_open(const char *name, int flags) {
    const char *directory = getenv("HOLD");
    char path[4096];
    if (directory == NULL) return -1;
    snprintf(path, sizeof path, "%s/%s", directory, name);
    return (int)syscall(SYS_openat, AT_FDCWD, path, flags | O_CLOEXEC, 0600);
}

static int is_wanted(const char *call) {
    int file = raw_open("calls", O_RDONLY);
    if (file < 0) return 0;
    char text[1024];
    long count = syscall(SYS_read, file, text, sizeof text - 1);
    syscall(SYS_close, file);
    text[count > 0 ? count : 0] = 0;
    char *rest = text;
    for (char *line; (line = strsep(&rest, "\n")) != NULL;)
        if (strcmp(line, call) == 0) return 1;
    return 0;
}

/* The process file system is in the kernel's memory: no disk can hold its calls. */
static int is_of_memory(const char *path) { return path != NULL && strncmp(path, "/proc/", 6) == 0; }

static void hold(const char *call, const char *what) {
    if (is_of_memory(what) || !is_wanted(call)) return;
    int file = raw_open("held", O_WRONLY | O_APPEND | O_CREAT);
    if (file >= 0) {
        char line[4096];
        const char *who = syscall(SYS_gettid) == getpid() ? "loop" : "other";
        int length = snprintf(line, sizeof line, "%s %s %s\n", who, call, what ? what : "");
        syscall(SYS_write, file, line, (size_t)length);
        syscall(SYS_close, file);
    }
    struct timespec pause = {0, 3000000};
    while (is_wanted(call)) syscall(SYS_nanosleep, &pause, NULL);
}

#define REAL(type, name, ...) \
    static type (*real)(__VA_ARGS__); \
    if (real == NULL) *(void **)&real = dlsym(RTLD_NEXT, #name)

#define HELD(call, what, type, name, parameters, ...) \
    type name parameters { \
        static type(*real) parameters; \
        if (real == NULL) *(void **)&real = dlsym(RTLD_NEXT, #name); \
        hold(call, what); \
        return real(__VA_ARGS__); \
    }

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        REAL(int, name, const char *, int, ...); \
        va_list rest; \
        va_start(rest, flags); \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest); \
        hold("open", path); \
        return real(path, flags, mode); \
    }

#define OPENAT(name) \
    int name(int directory, const char *path, int flags, ...) { \
        REAL(int, name, int, const char *, int, ...); \
        va_list rest; \
        va_start(rest, flags); \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest); \
        hold("open", path); \
        return real(directory, path, flags, mode); \
    }

OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)
HELD("stat", p, int, stat, (const char *restrict p, struct stat *restrict s), p, s)
HELD("stat", p, int, stat64, (const char *restrict p, struct stat64 *restrict s), p, s)
HELD("stat", p, int, lstat, (const char *restrict p, struct stat *restrict s), p, s)
HELD("stat", p, int, lstat64, (const char *restrict p, struct stat64 *restrict s), p, s)
HELD("stat", p, int, fstatat, (int d, const char *restrict p, struct stat *restrict s, int f), d, p, s, f)
HELD("stat", p, int, fstatat64, (int d, const char *restrict p, struct stat64 *restrict s, int f), d, p, s, f)
HELD("access", p, int, access, (const char *p, int m), p, m)
HELD("access", p, int, faccessat, (int d, const char *p, int m, int f), d, p, m, f)
HELD("rename", a, int, rename, (const char *a, const char *b), a, b)
HELD("rename", a, int, renameat, (int c, const char *a, int d, const char *b), c, a, d, b)
HELD("unlink", p, int, unlink, (const char *p), p)
HELD("unlink", p, int, unlinkat, (int d, const char *p, int f), d, p, f)
HELD("mkdir", p, int, mkdir, (const char *p, mode_t m), p, m)
HELD("chmod", p, int, chmod, (const char *p, mode_t m), p, m)
HELD("chmod", p, int, fchmodat, (int d, const char *p, mode_t m, int f), d, p, m, f)
HELD("readlink", p, ssize_t, readlink, (const char *restrict p, char *restrict b, size_t n), p, b, n)
HELD("realpath", p, char *, realpath, (const char *restrict p, char *restrict b), p, b)
HELD("opendir", p, void *, opendir, (const char *p), p)
HELD("fsync", "", int, fsync, (int d), d)
HELD("fsync", "", int, fdatasync, (int d), d)
HELD("flock", "", int, flock, (int d, int o), d, o)
HELD("inotify_add_watch", p, int, inotify_add_watch, (int d, const char *p, unsigned m), d, p, m)
HELD("names", n, int, getpwnam_r, (const char *restrict n, struct passwd *restrict e, char *restrict b, size_t l, struct passwd **restrict r), n, e, b, l, r)
HELD("names", "", int, getpwuid_r, (uid_t n, struct passwd *restrict e, char *restrict b, size_t l, struct passwd **restrict r), n, e, b, l, r)
HELD("names", n, int, getgrnam_r, (const char *restrict n, struct group *restrict e, char *restrict b, size_t l, struct group **restrict r), n, e, b, l, r)
HELD("names", "", int, getgrgid_r, (gid_t n, struct group *restrict e, char *restrict b, size_t l, struct group **restrict r), n, e, b, l, r)
HELD("names", h, int, getaddrinfo, (const char *restrict h, const char *restrict s, const struct addrinfo *restrict w, struct addrinfo **restrict r), h, s, w, r)

int statx(int directory, const char *restrict path, int flags, unsigned mask, struct statx *restrict found) {
    REAL(int, statx, int, const char *restrict, int, unsigned, struct statx *restrict);
    /* One of an open file is of memory, or of the disk of a file whose opening was held before. */
    if (path[0] != 0) hold("stat", path);
    return real(directory, path, flags, mask, found);
}

/* What is written to a file, a pipe or the standard streams; not what goes to sockets and wakes other threads. */
ssize_t write(int descriptor, const void *bytes, size_t count) {
    REAL(ssize_t, write, int, const void *, size_t);
    struct stat found;
    int known = syscall(SYS_fstat, descriptor, &found) == 0;
    if (descriptor <= 2 || (known && (S_ISREG(found.st_mode) || S_ISFIFO(found.st_mode)))) hold("write", "");
    return real(descriptor, bytes, count);
}

/* A file's close may write on some disks, and that of a watch waits for the kernel's readers. */
int close(int descriptor) {
    REAL(int, close, int);
    struct stat found;
    char link[64], target[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    long length = syscall(SYS_readlinkat, AT_FDCWD, link, target, sizeof target - 1);
    target[length > 0 ? length : 0] = 0;
    int known = syscall(SYS_fstat, descriptor, &found) == 0;
    if ((known && S_ISREG(found.st_mode)) || strcmp(target, "anon_inode:inotify") == 0) hold("close", target);
    return real(descriptor);
}

/* A peer on this machine that reads nothing holds who sends. */
static int is_local(int socket) {
    int domain = 0;
    socklen_t length = sizeof domain;
    return getsockopt(socket, SOL_SOCKET, SO_DOMAIN, &domain, &length) == 0 && domain == AF_UNIX;
}

static int is_local_datagram(int socket) {
    int type = 0;
    socklen_t length = sizeof type;
    return is_local(socket) && getsockopt(socket, SOL_SOCKET, SO_TYPE, &type, &length) == 0 && type == SOCK_DGRAM;
}

int connect(int socket, const struct sockaddr *address, socklen_t length) {
    REAL(int, connect, int, const struct sockaddr *, socklen_t);
    if (is_local(socket)) hold("connect", "");
    return real(socket, address, length);
}

ssize_t send(int socket, const void *bytes, size_t count, int flags) {
    REAL(ssize_t, send, int, const void *, size_t, int);
    if (is_local_datagram(socket)) hold("send", "");
    return real(socket, bytes, count, flags);
}

ssize_t sendto(int socket, const void *bytes, size_t count, int flags, const struct sockaddr *to, socklen_t length) {
    REAL(ssize_t, sendto, int, const void *, size_t, int, const struct sockaddr *, socklen_t);
    if (is_local_datagram(socket)) hold("send", "");
    return real(socket, bytes, count, flags, to, length);
}

ssize_t sendmsg(int socket, const struct msghdr *message, int flags) {
    REAL(ssize_t, sendmsg, int, const struct msghdr *, int);
    if (is_local_datagram(socket)) hold("send", "");
    return real(socket, message, flags);
}
