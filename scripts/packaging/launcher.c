/* The one file: unpacks the program it carries into a folder of its own, and becomes that program.
 *
 * It is linked statically and needs nothing of the host but /proc and a place for temporary files, TMPDIR or /tmp.
 * There is one process: exec keeps its id, its name and its parent, so signals and exit status need no passing on.
 *
 * The folder is locked (flock) as long as the program or a child of it lives, by the open file that exec hands on. The
 * program removes it when it ends (entry.py). What a killed one leaves is removed by the next start: folders of our
 * name and owner that bear the mark of this file and that nobody locks.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>
#include <zstd.h>

#define PREFIX "fastmasq-"
#define MARK ".unpacked" /* a symbolic link to "fastmasq INODE", the folder's own: a copy of the folder has another */
#define PROGRAM "fastmasq"
#define LOADER "lib/loader"

/* PAYLOAD is a tar file (ustar: files, folders, symbolic links), compressed by zstd. */
__asm__(".section .rodata\n"
        "payload: .incbin \"" PAYLOAD "\"\n"
        "payload_end:\n"
        ".previous\n");
extern const char payload[], payload_end[];

struct ustar {
    char name[100], mode[8], uid[8], gid[8], size[12], mtime[12], checksum[8], type, link[100];
    char magic[6], version[2], user[32], group[32], major[8], minor[8], prefix[155], padding[12];
};

static char folder[PATH_MAX]; /* where it is unpacked; empty until there is one */
static int at = -1;           /* the same, open and locked */

static void remove_tree(int parent, const char *name);

/* Say what is wrong in one line, leave nothing behind, and end. */
static void fail(const char *what, const char *where, const char *why)
{
    fprintf(stderr, "fastmasq: %s%s: %s\n", what, where, why);
    if (*folder)
        remove_tree(AT_FDCWD, folder);
    exit(1);
}

static void remove_tree(int parent, const char *name)
{
    int opened = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    DIR *listing = opened < 0 ? NULL : fdopendir(opened);
    struct dirent *entry;

    while (listing && (entry = readdir(listing))) {
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, ".."))
            continue;
        if (unlinkat(opened, entry->d_name, 0) && (errno == EISDIR || errno == EPERM))
            remove_tree(opened, entry->d_name);
    }
    if (listing)
        closedir(listing);
    unlinkat(parent, name, AT_REMOVEDIR);
}

static void write_mark(char *mark, size_t size, const struct stat *status)
{
    snprintf(mark, size, PROGRAM " %llu", (unsigned long long)status->st_ino);
}

/* Whether an open folder was made by this file, for this user. */
static int is_marked(int opened)
{
    char found[64] = "", expected[64];
    struct stat status;

    if (fstat(opened, &status) || status.st_uid != geteuid() || (status.st_mode & 07777) != 0700)
        return 0;
    write_mark(expected, sizeof expected, &status);
    return readlinkat(opened, MARK, found, sizeof found - 1) > 0 && !strcmp(found, expected);
}

/* Remove the folders in `parent` of processes that were killed. */
static void remove_what_was_left(const char *parent)
{
    DIR *listing = opendir(parent);
    struct dirent *entry;

    while (listing && (entry = readdir(listing))) {
        if (strncmp(entry->d_name, PREFIX, strlen(PREFIX)))
            continue;
        int left = openat(dirfd(listing), entry->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (left < 0)
            continue;
        if (is_marked(left) && !flock(left, LOCK_EX | LOCK_NB))
            remove_tree(dirfd(listing), entry->d_name);
        close(left);
    }
    if (listing)
        closedir(listing);
}

static void make_folder(const char *parent)
{
    char path[PATH_MAX], mark[64];
    struct statvfs place;
    struct stat status;

    if ((size_t)snprintf(path, sizeof path, "%s/" PREFIX "XXXXXX", parent) >= sizeof path)
        fail("cannot unpack in ", parent, "the name is too long: set TMPDIR to another directory");
    if (statvfs(parent, &place))
        fail("cannot unpack in ", parent, "no such directory: set TMPDIR to one that is there");
    if (place.f_flag & ST_NOEXEC)
        fail("cannot run from ", parent, "it is mounted noexec: set TMPDIR to a directory that is not");
    if (!mkdtemp(path))
        fail("cannot unpack in ", parent, strerror(errno));
    strcpy(folder, path);
    at = open(folder, O_RDONLY | O_DIRECTORY | O_NOFOLLOW); /* inherited by the program, with its lock */
    if (at < 0 || flock(at, LOCK_EX) || fstat(at, &status))
        fail("cannot lock ", folder, strerror(errno));
    write_mark(mark, sizeof mark, &status);
    if (symlinkat(mark, at, MARK))
        fail("cannot unpack in ", folder, strerror(errno));
}

static void write_file(const char *name, mode_t mode, const char *content, size_t size)
{
    int file = openat(at, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode);

    while (file >= 0 && size) {
        ssize_t written = write(file, content, size);
        if (written < 0)
            break;
        content += written;
        size -= written;
    }
    if (file < 0 || size || close(file))
        fail("cannot unpack in ", folder, strerror(errno));
}

static void unpack(void)
{
    size_t packed = payload_end - payload, size = ZSTD_getFrameContentSize(payload, packed);
    char *tar = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (tar == MAP_FAILED)
        fail("cannot unpack in ", folder, strerror(errno));
    if (ZSTD_decompress(tar, size, payload, packed) != size)
        fail("cannot unpack in ", folder, "this file is damaged: copy it anew");
    for (char *next = tar; next + 512 <= tar + size && *next;) {
        const struct ustar *head = (const struct ustar *)next;
        size_t length = strtoul(head->size, NULL, 8);
        char name[260];

        snprintf(name, sizeof name, "%.155s%s%.100s", head->prefix, *head->prefix ? "/" : "", head->name);
        if (head->type == '5' ? mkdirat(at, name, 0700) : head->type == '2' ? symlinkat(head->link, at, name) : 0)
            fail("cannot unpack in ", folder, strerror(errno));
        if (head->type == '0')
            write_file(name, strtoul(head->mode, NULL, 8) & 0700, next + 512, length);
        next += 512 + (length + 511) / 512 * 512;
    }
    munmap(tar, size);
}

/* Name the loader in the program by its path here: there may be none on the host, or one of another libc. */
static void set_interpreter(void)
{
    int file = openat(at, PROGRAM, O_RDWR | O_CLOEXEC);
    char loader[PATH_MAX + sizeof LOADER + 1];
    Elf64_Ehdr elf;
    Elf64_Phdr part;

    size_t length = snprintf(loader, sizeof loader, "%s/" LOADER, folder) + 1;
    if (file < 0 || pread(file, &elf, sizeof elf, 0) != sizeof elf)
        fail("cannot read ", folder, strerror(errno));
    for (int number = 0; number < elf.e_phnum; number++) {
        off_t offset = elf.e_phoff + number * sizeof part;
        if (pread(file, &part, sizeof part, offset) != sizeof part || part.p_type != PT_INTERP)
            continue;
        if (length > part.p_filesz)
            fail("cannot run from ", folder, "the name is too long: set TMPDIR to another directory");
        part.p_filesz = part.p_memsz = length;
        if (pwrite(file, loader, length, part.p_offset) != (ssize_t)length ||
            pwrite(file, &part, sizeof part, offset) != sizeof part)
            fail("cannot unpack in ", folder, strerror(errno));
    }
    close(file);
}

int main(int count, char **words)
{
    const char *parent = getenv("TMPDIR");
    char own[PATH_MAX], program[PATH_MAX + sizeof PROGRAM + 1];
    ssize_t length = readlink("/proc/self/exe", own, sizeof own - 1);

    if (count < 1 || length < 0)
        fail("cannot find itself", "", "mount /proc");
    own[length] = '\0';
    if (!parent || *parent != '/')
        parent = "/tmp";
    remove_what_was_left(parent);
    make_folder(parent);
    unpack();
    set_interpreter();
    setenv("FASTMASQ_FILE", own, 1);
    snprintf(program, sizeof program, "%s/" PROGRAM, folder);
    execv(program, words);
    fail("cannot run ", program, strerror(errno));
}
