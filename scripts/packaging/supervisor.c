/* The parent of a supervised bundle: runs the forwarder, and again whenever it dies.
 *
 * It does what fastmasq/cli/supervisor.py does for a wheel, in a tenth of a megabyte, where a bundle's Python has nothing
 * to share with others: the same signals are passed on, the same lines said, and the same pauses made.
 * tests/unit/cli/test_supervisor.py asks the same of both.
 *
 * Usage: supervisor PROGRAM [ARGUMENT]...
 *        supervisor --follow CHILD
 */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define NAME "fastmasq"
#define VARIABLE "FASTMASQ_SUPERVISOR" /* of the forwarder's environment: our process, without which it is to end */
#define SHORT_S 10                     /* a life that is followed by a pause */
#define FIRST_PAUSE_S 1
#define LONGEST_PAUSE_S 60
#define WRONG_USAGE 2 /* the forwarder's status when its configuration is wrong: another start would help nobody */

extern char **environ;

static sigset_t awaited; /* what is passed on, and SIGCHLD; blocked all the time, so that none comes between two looks */
static int is_ending;    /* whether we were told to end */
static pid_t next;       /* who has taken the place of the child that runs */
static int as_json;      /* whether the forwarder logs so */

static time_t now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec;
}

static pid_t start(char **words)
{
    posix_spawnattr_t attributes;
    sigset_t none;
    pid_t child;

    sigemptyset(&none);
    posix_spawnattr_init(&attributes);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK);
    posix_spawnattr_setsigmask(&attributes, &none);
    errno = posix_spawn(&child, words[0], NULL, &attributes, words, environ);
    if (errno) {
        fprintf(stderr, NAME ": error: cannot start %s: %s\n", words[0], strerror(errno));
        exit(1);
    }
    posix_spawnattr_destroy(&attributes);
    return child;
}

/* Wait for the next signal, for this long at most (NULL: for ever), and pass it on to a child, if there is one. */
static void pass_on(pid_t child, const struct timespec *longest)
{
    siginfo_t told;
    int number = sigtimedwait(&awaited, &told, longest);

    if (number <= 0 || number == SIGCHLD)
        return;
    if (number == SIGUSR1) {
        next = told.si_pid;
        return;
    }
    if (number == SIGTERM || number == SIGINT)
        is_ending = 1;
    if (child)
        kill(child, number);
}

/* Wait for the end of a child, and then of the one that has taken its place; return the last one's status. */
static int follow(pid_t child)
{
    static const struct timespec at_once;
    siginfo_t told;
    sigset_t succeeds;
    int status;

    sigemptyset(&succeeds);
    sigaddset(&succeeds, SIGUSR1);
    for (;;) {
        while (waitpid(child, &status, WNOHANG) == 0)
            pass_on(child, NULL);
        while (sigtimedwait(&succeeds, &told, &at_once) > 0) /* said before it has ended */
            next = told.si_pid;
        child = next;
        next = 0;
        if (!child || waitid(P_PID, child, &told, WEXITED | WNOHANG | WNOWAIT))
            return status;
        if (is_ending)
            kill(child, SIGTERM);
    }
}

static void say(int status, int pause_s)
{
    char cause[64], when[32] = "at once", stamp[32];
    time_t time_of_day = time(NULL);
    const char *signal_name = WIFSIGNALED(status) ? sigabbrev_np(WTERMSIG(status)) : NULL;

    if (signal_name)
        snprintf(cause, sizeof cause, "was killed by SIG%s", signal_name);
    else if (WIFSIGNALED(status))
        snprintf(cause, sizeof cause, "was killed by signal %d", WTERMSIG(status));
    else
        snprintf(cause, sizeof cause, "ended with status %d", WEXITSTATUS(status));
    if (pause_s)
        snprintf(when, sizeof when, "in %d s", pause_s);
    strftime(stamp, sizeof stamp, "%Y-%m-%dT%H:%M:%S+00:00", gmtime(&time_of_day));
    if (as_json)
        fprintf(stderr, "{\"time\": \"%s\", \"level\": \"error\", \"logger\": \"" NAME ".supervisor\", \"message\": \"", stamp);
    else
        fprintf(stderr, NAME ": error: ");
    fprintf(stderr, "the forwarder %s; starting it again %s%s\n", cause, when, as_json ? "\"}" : "");
}

int main(int count, char **words)
{
    static const int passed_on[] = {SIGTERM, SIGINT, SIGHUP, SIGUSR2};
    struct sigaction before;
    char own[16];
    int pause_s = 0;
    pid_t followed = count == 3 && !strcmp(words[1], "--follow") ? atoi(words[2]) : 0;

    if (count < 2) {
        fprintf(stderr, "usage: %s PROGRAM [ARGUMENT]...\n", words[0]);
        return WRONG_USAGE;
    }
    for (char **word = words + 1; *word; word++)
        as_json |= !strcmp(*word, "--log-json");
    setvbuf(stderr, NULL, _IOLBF, 0); /* whole lines, beside those of the forwarder */
    prctl(PR_SET_NAME, NAME);
    prctl(PR_SET_CHILD_SUBREAPER, 1); /* the children of a child that ends are ours; since Linux 3.4 */
    snprintf(own, sizeof own, "%d", getpid());
    setenv(VARIABLE, own, 1);
    signal(SIGPIPE, SIG_IGN); /* nobody may read what is said */
    signal(SIGCHLD, SIG_DFL);
    sigemptyset(&awaited);
    sigaddset(&awaited, SIGCHLD);
    sigaddset(&awaited, SIGUSR1);
    for (size_t number = 0; number < sizeof passed_on / sizeof *passed_on; number++)
        if (!sigaction(passed_on[number], NULL, &before) && before.sa_handler != SIG_IGN) /* nohup has one ignored */
            sigaddset(&awaited, passed_on[number]);
    sigprocmask(SIG_BLOCK, &awaited, NULL);
    for (;;) {
        time_t started = now();
        int status = follow(followed ? followed : start(words + 1));
        int code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);

        if (followed || is_ending || (WIFEXITED(status) && (code == 0 || code == WRONG_USAGE)))
            return code;
        if (now() - started >= SHORT_S)
            pause_s = 0;
        else
            pause_s = pause_s == 0 ? FIRST_PAUSE_S : 2 * pause_s < LONGEST_PAUSE_S ? 2 * pause_s : LONGEST_PAUSE_S;
        say(status, pause_s);
        for (time_t until = now() + pause_s; !is_ending && now() < until;)
            pass_on(0, &(struct timespec){.tv_sec = until - now()});
        if (is_ending)
            return 0;
    }
}
