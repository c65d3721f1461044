/* Programs that work the kernel: system calls, faults, processes, pipes. */
#define _GNU_SOURCE
#include "bench.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static uint64_t getppid_loop(void) {
    for (int i = 0; i < 100000; i++) syscall(SYS_getppid);
    return 100000;
}

static uint64_t page_faults(void) {
    enum { PAGES = 16384 };
    uint8_t *p = mmap(NULL, PAGES * 4096ul, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) die("mmap");
    madvise(p, PAGES * 4096ul, MADV_NOHUGEPAGE);
    for (uint32_t i = 0; i < PAGES; i++) p[i * 4096ul] = 1;
    munmap(p, PAGES * 4096ul);
    return PAGES;
}

static uint64_t protect(void) {
    uint8_t *p = mmap(NULL, 64 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) die("mmap");
    for (int i = 0; i < 5000; i++) {
        if (mprotect(p, 64 * 4096, i & 1 ? PROT_READ | PROT_WRITE : PROT_READ)) die("mprotect");
        if (i & 1) p[(i & 63) * 4096] = 1;
    }
    munmap(p, 64 * 4096);
    return 5000;
}

static uint64_t wait_for(pid_t child) {
    int status;
    if (child < 0 || waitpid(child, &status, 0) != child) die("fork or wait");
    if (!WIFEXITED(status)) die("child");
    return (uint64_t)WEXITSTATUS(status);
}

static uint64_t fork_wait(void) {
    uint64_t sum = 0;
    for (int i = 0; i < 100; i++) {
        pid_t child = fork();
        if (child == 0) _exit(i & 7);
        sum = mix(sum, wait_for(child));
    }
    return sum;
}

static uint64_t fork_exec(void) {
    uint64_t sum = 0;
    for (int i = 0; i < 30; i++) {
        pid_t child = fork();
        if (child == 0) {
            int null = open("/dev/null", O_WRONLY);
            if (null < 0 || dup2(null, 1) != 1) _exit(9);
            execl("/proc/self/exe", "cpubench", "-l", "sieve", (char *)NULL);
            _exit(8);
        }
        sum = mix(sum, wait_for(child));
    }
    return sum;
}

static uint64_t pipe_ping_pong(void) {
    enum { ROUNDS = 5000 };
    int there[2], back[2];
    if (pipe(there) || pipe(back)) die("pipe");
    pid_t child = fork();
    if (child == 0) {
        char c;
        for (int i = 0; i < ROUNDS; i++)
            if (read(there[0], &c, 1) != 1 || write(back[1], &c, 1) != 1) _exit(1);
        _exit(0);
    }
    char c = 'x';
    for (int i = 0; i < ROUNDS; i++)
        if (write(there[1], &c, 1) != 1 || read(back[0], &c, 1) != 1) die("pipe");
    uint64_t status = wait_for(child);
    close(there[0]), close(there[1]), close(back[0]), close(back[1]);
    return ROUNDS + status;
}

/* Two threads on one lock and one counter each: contention, futexes. */
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static uint64_t shared_counter;

static void *contend(void *unused) {
    (void)unused;
    for (int i = 0; i < 20000; i++) {
        pthread_mutex_lock(&mutex);
        shared_counter++;
        pthread_mutex_unlock(&mutex);
    }
    return NULL;
}

static uint64_t threads(void) {
    pthread_t ids[4];
    shared_counter = 0;
    for (int i = 0; i < 4; i++)
        if (pthread_create(&ids[i], NULL, contend, NULL)) die("pthread_create");
    for (int i = 0; i < 4; i++) pthread_join(ids[i], NULL);
    return shared_counter;
}

const struct program system_programs[] = {
    {"getppid", getppid_loop, 0, 0},   {"page-faults", page_faults, 0, 0}, {"mprotect", protect, 0, 0},
    {"fork-wait", fork_wait, 0, 0},    {"fork-exec", fork_exec, 0, 0},     {"pipe-ping-pong", pipe_ping_pong, 0, 0},
    {"threads-mutex", threads, 0, 0},  {0, 0, 0, 0},
};
