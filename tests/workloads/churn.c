/* SPDX-License-Identifier: Apache-2.0 */
/*
 * churn FILE [OPTIONS]: threads, and children that come and go, do everything to their memory that
 * can be done to memory, know what every byte of it must be, and look all the time.  FILE shows how
 * it goes (struct face in churn.h), FILE.map beside it is mapped privately.
 *
 *   --seed S      the same dice (default: the time)
 *   --threads N   1 to 16 (default 2), each with a slice of its own
 *   --mib N       of all slices together (default 32)
 *   --rate N      MB/s that all threads dirty together, 0: no limit (default 50)
 *   --prefork N   children that live as long as it does, on memory that they have in common
 *   --fork-ms N   between children that live for a while (default 300), 0: none
 *   --exec-ms N   between executions of itself (default 5000), 0: none
 *   --hasty 1     executes at once when it is overdue, though it has just been frozen
 *   --seconds N   ends after that, with 0 if all was right
 *   --most N      pages at a time: few make many areas (default: from one to thousands)
 *   --seccomp 1   a filter that kills whoever calls userfaultfd
 *   --no-KIND     leaves out map, remap, protect, discard, free, file, memfd, shared, huge, brk,
 *                 stack or board
 *   --limit N, --state TEXT   are what it says to itself
 *
 * A step is taken under the world's lock, shared; fork and exec take it for themselves, so that a
 * child finds all slices between two steps and can check them.  What is shared between processes
 * is the board, whose pages have locks.
 */
#include "churn.h"
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#define THREADS_MAX 16
#define CHILDREN_MAX 4
#define DEPTH_MAX 2
#define SLICE_BASE 0x100000000000 /* far from what the kernel chooses */
#define SLICE_DISTANCE 0x1000000000
#define HEAP_PAGES 512
#define BACKING_PAGES 512
#define BOARD_PAGES 64
#define STACK_PAGES 48
#define CHUNK 256          /* pages checked between two looks at the world */
#define LOOKED_ON_MAX 1e8  /* ns: what was missed while frozen is not made up for */
#define GAP_NS 20000000    /* whoever was away for so long may have been frozen, */
#define REST_NS 300000000  /* and rests */
#define ARGUMENT_BYTES 600 /* of the state that is handed to the next program */
#define ARGUMENTS_MAX 80
#define LETTER_BYTES 6000 /* of its environment */

struct options {
    uint64_t seed, threads, mib, rate, prefork, fork_ms, exec_ms, hasty, seconds, seccomp, most,
        limit;
    const char *state;
    uint32_t without;
};

struct worker {
    size_t number;
    int slot; /* -1: a child that comes and goes */
    struct slice *mine[THREADS_MAX + 1];
    size_t count;
    struct dice dice;
    uint64_t steps;
    double debt_ns; /* what it has written ahead of its rate */
    uint64_t last_ns;
    bool leader; /* of its process: reaps and forks */
};

struct op {
    const char *group; /* NULL: cannot be left out */
    unsigned weight;
    bool on_heap;
    size_t (*run)(struct slice *s, struct dice *d);
};

struct board {
    struct {
        uint32_t lock, spare;
        uint64_t key;
    } of[BOARD_PAGES];
};

struct face *face;
static struct options options = {
    .threads = 2, .mib = 32, .rate = 50, .fork_ms = 300, .exec_ms = 5000};
static char **arguments;
static struct slice slices[THREADS_MAX + 1]; /* the last is the heap */
static struct worker workers[THREADS_MAX];
static pthread_rwlock_t world;
static struct backing file, memfd;
static struct board *board;
static unsigned char *board_pages;
static uint64_t executions, until_ns, next_fork, next_exec;
static unsigned children, depth; /* of this process */
static pid_t father;

/* ---- telling ---- */

_Noreturn void wrong(const char *format, ...)
{
    uint64_t nobody = 0, me = (uint64_t)getpid();
    char text[sizeof(face->text)];
    va_list ap;

    if (!__atomic_compare_exchange_n(&face->told, &nobody, me, false, __ATOMIC_SEQ_CST,
                                     __ATOMIC_SEQ_CST)) {
        if (nobody == me)
            pause(); /* another thread is telling */
        _exit(1);
    }
    int n = snprintf(text, sizeof(text), "pid %d, seed %llu: ", (int)me,
                     (unsigned long long)face->seed);
    va_start(ap, format);
    vsnprintf(text + n, sizeof(text) - (size_t)n, format, ap);
    va_end(ap);
    memcpy(face->text, text, sizeof(text));
    memcpy(face->state, "corrupt", 8);
    if (write(1, text, strlen(text)) < 0 || write(1, "\n", 1) < 0)
        _exit(3);
    _exit(1);
}

static void on_fault(int sig, siginfo_t *info, void *context)
{
    (void)context;
    wrong("signal %d at %p", sig, info->si_addr);
}

static void watch_faults(void)
{
    struct sigaction sa = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};

    sigemptyset(&sa.sa_mask);
    sigaction(SIGSEGV, &sa, NULL);
    sigaction(SIGBUS, &sa, NULL);
}

static void open_face(const char *path, bool anew)
{
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);

    if (fd < 0 || (anew && ftruncate(fd, 0) < 0) || ftruncate(fd, sizeof(*face)) < 0)
        die(path);
    face = mmap(NULL, sizeof(*face), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (face == MAP_FAILED)
        die(path);
    close(fd);
}

static void *heart_main(void *arg)
{
    for (;; sleep_us(1000)) {
        uint64_t now = now_ns(), all = 0;

        if (face->beat && now > face->beat && now - face->beat > face->longest_gap)
            face->longest_gap = now - face->beat;
        face->beat = now;
        for (size_t i = 0; i < SLOTS; i++)
            all += face->slot[i].steps;
        face->counter = all;
    }
    return arg;
}

/* ---- the board: pages that several processes write to ---- */

static void board_make(void)
{
    size_t size = PAGE * (1 + BOARD_PAGES);

    board = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (board == MAP_FAILED)
        die("board");
    board_pages = (unsigned char *)board + PAGE;
}

static void board_check(size_t i)
{
    uint64_t *words = (uint64_t *)(board_pages + i * PAGE);

    if (!page_is(words, board->of[i].key, PAGE_WORDS))
        wrong("page %zu of the board at %p is not what was written last (%s)", i, (void *)words,
              page_is(words, 0, PAGE_WORDS) ? "it is all zeroes" : "it is not zeroes");
}

static size_t board_step(struct slice *s, struct dice *d)
{
    size_t i = roll(d, BOARD_PAGES), wrote = 0;

    (void)s;
    while (__atomic_exchange_n(&board->of[i].lock, 1, __ATOMIC_ACQUIRE))
        sleep_us(20);
    board_check(i);
    if (roll(d, 2)) {
        board->of[i].key = mix(d->state) | 1;
        page_fill((uint64_t *)(board_pages + i * PAGE), board->of[i].key);
        wrote = PAGE;
    }
    __atomic_store_n(&board->of[i].lock, 0, __ATOMIC_RELEASE);
    return wrote;
}

/* ---- the stack ---- */

static __attribute__((noinline)) size_t descend(size_t pages, uint64_t key)
{
    volatile uint64_t frame[PAGE_WORDS];
    size_t below = 0;

    for (size_t i = 0; i < PAGE_WORDS; i += 8)
        frame[i] = mix(key + i);
    if (pages > 1)
        below = descend(pages - 1, mix(key));
    else
        sleep_us(200);
    for (size_t i = 0; i < PAGE_WORDS; i += 8) {
        if (frame[i] != mix(key + i))
            wrong("the stack at %p is not what was put there", (void *)&frame[i]);
    }
    return below + PAGE;
}

static size_t stack_step(struct slice *s, struct dice *d)
{
    (void)s;
    return descend(1 + roll(d, STACK_PAGES), roll(d, UINT64_MAX));
}

/* ---- what there is to do ---- */

static const struct op ops[] = {
    {NULL, 16, true, slice_write},        {NULL, 12, true, slice_poke},
    {NULL, 4, true, slice_zero},          {NULL, 16, true, slice_look},
    {"map", 8, false, slice_map},         {"map", 4, false, slice_unmap},
    {"huge", 1, false, slice_map_huge},   {"shared", 3, false, slice_map_shared},
    {"shared", 1, false, slice_remove},   {"file", 2, false, slice_map_file},
    {"memfd", 2, false, slice_map_memfd}, {"remap", 5, false, slice_move},
    {"remap", 2, false, slice_leave},     {"remap", 3, false, slice_grow},
    {"remap", 2, false, slice_shrink},    {"protect", 6, false, slice_protect},
    {"discard", 4, true, slice_discard},  {"free", 3, true, slice_free},
    {"brk", 8, true, slice_brk},          {"stack", 1, true, stack_step},
    {"board", 6, true, board_step},
};

#define OPS (sizeof(ops) / sizeof(ops[0]))

static bool op_fits(const struct op *op, const struct slice *s)
{
    if (options.without & 1U << (op - ops))
        return false;
    return s->heap ? op->on_heap : op->run != slice_brk;
}

static const struct op *pick_op(const struct slice *s, struct dice *d)
{
    unsigned total = 0;

    for (size_t i = 0; i < OPS; i++)
        total += op_fits(&ops[i], s) ? ops[i].weight : 0;
    unsigned at = (unsigned)roll(d, total);
    for (size_t i = 0;; i++) {
        if (!op_fits(&ops[i], s))
            continue;
        if (at < ops[i].weight)
            return &ops[i];
        at -= ops[i].weight;
    }
}

/* The slice stays more full than empty. */
static size_t act(struct slice *s, struct dice *d)
{
    const struct op *op = pick_op(s, d);
    bool empty = !s->heap && s->mapped < s->pages / 5 * 3;

    if (empty && op->group && roll(d, 2))
        return slice_map(s, d);
    return op->run(s, d);
}

static void check_letter(void)
{
    const char *letter = getenv("CHURN_LETTER");
    size_t n = 0;

    if (executions == 0)
        return;
    while (letter && letter[n] && letter[n] == (char)('a' + mix(executions + n) % 26))
        n++;
    if (n != LETTER_BYTES)
        wrong("the environment is wrong from byte %zu on, after %llu executions", n,
              (unsigned long long)executions);
}

/* Everything of a worker's, in pieces, so that nobody waits for long who wants the world. */
static void check_all(struct worker *w)
{
    for (size_t i = 0; i < w->count; i++) {
        struct slice *s = w->mine[i];

        for (size_t at = 0; at < s->pages; at += CHUNK) {
            pthread_rwlock_rdlock(&world);
            slice_check(s, at, CHUNK);
            pthread_rwlock_unlock(&world);
        }
        pthread_rwlock_rdlock(&world);
        slice_check_records(s);
        pthread_rwlock_unlock(&world);
    }
    check_letter();
}

/* ---- pace ---- */

static void pay(struct worker *w)
{
    uint64_t now = now_ns();
    double passed = now > w->last_ns ? (double)(now - w->last_ns) : 0;

    w->debt_ns -= passed < LOOKED_ON_MAX ? passed : LOOKED_ON_MAX;
    if (w->debt_ns < 0)
        w->debt_ns = 0;
    w->last_ns = now;
}

static void owe(struct worker *w, size_t bytes)
{
    uint64_t sharers = options.threads + options.prefork;

    __atomic_fetch_add(&face->written, bytes, __ATOMIC_RELAXED);
    if (options.rate)
        w->debt_ns += (double)(bytes + PAGE / 4) * (double)sharers * 1e3 / (double)options.rate;
}

static void step(struct worker *w)
{
    pthread_rwlock_rdlock(&world);
    if (w->slot >= 0 && face->slot[w->slot].steps != w->steps)
        wrong("slot %d: the file says %llu steps, the memory %llu: it went back, or runs twice",
              w->slot, (unsigned long long)face->slot[w->slot].steps, (unsigned long long)w->steps);
    owe(w, act(w->mine[roll(&w->dice, w->count)], &w->dice));
    w->steps++;
    if (w->slot >= 0)
        face->slot[w->slot].steps = w->steps;
    pthread_rwlock_unlock(&world);
}

/* ---- children ---- */

static void make_world(void)
{
    pthread_rwlockattr_t fair;

    pthread_rwlockattr_init(&fair);
    pthread_rwlockattr_setkind_np(&fair, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
    if (pthread_rwlock_init(&world, &fair) != 0)
        die("world");
}

/* A child's exit status tells whether it found its memory right. */
static void reap_all(bool wait)
{
    int status;

    while (children > 0) {
        pid_t pid = waitpid(-1, &status, wait ? 0 : WNOHANG);
        if (pid == 0 || (pid < 0 && errno == EINTR && !wait))
            return;
        if (pid < 0 && errno == EINTR)
            continue;
        if (pid < 0)
            wrong("%u children are not there: %s", children, strerror(errno));
        if (status != 0)
            wrong("child %d ended with status %#x", (int)pid, status);
        children--;
    }
}

/* Between a child and its count no thread executes a program, and hands on how many there are. */
static void reap(bool wait)
{
    pthread_rwlock_rdlock(&world);
    reap_all(wait);
    pthread_rwlock_unlock(&world);
}

static unsigned temporary_children(void)
{
    return depth == 0 ? children - (unsigned)options.prefork : children;
}

static bool asked(void)
{
    return __atomic_load_n(&face->wanted, __ATOMIC_ACQUIRE) != face->answered;
}

/* This process is a copy with one thread, of a world that stood still. */
static void inherit(struct worker *w, int slot)
{
    depth++;
    father = getppid();
    children = 0;
    make_world();
    w->slot = slot;
    w->leader = true;
    w->steps = slot >= 0 ? face->slot[slot].steps : 0;
    w->debt_ns = 0;
    w->count = 0;
    w->dice.state ^= mix((uint64_t)getpid());
    for (size_t i = 0; i <= THREADS_MAX; i++) {
        if (slices[i].pages == 0)
            continue;
        slice_inherit(&slices[i], w->dice.state);
        w->mine[w->count++] = &slices[i];
    }
    check_all(w);
}

static void serve(struct worker *w, uint64_t steps);
static _Noreturn void exec_small(struct worker *w);

static _Noreturn void child_main(struct worker *w)
{
    inherit(w, -1);
    serve(w, 10 + roll(&w->dice, 200));
    if (getppid() != father)
        _exit(0);
    check_all(w);
    reap(true);
    if (options.exec_ms && roll(&w->dice, 3) == 0)
        exec_small(w);
    _exit(0);
}

static _Noreturn void prefork_main(struct worker *w, int slot)
{
    inherit(w, slot);
    serve(w, UINT64_MAX);
    _exit(0);
}

static void fork_child(struct worker *w)
{
    pthread_rwlock_wrlock(&world);
    pid_t pid = fork();
    if (pid == 0)
        child_main(w);
    if (pid < 0)
        die("fork");
    children++;
    if (depth == 0)
        face->forks++;
    pthread_rwlock_unlock(&world);
}

static void prefork(struct worker *w)
{
    for (uint64_t i = 0; i < options.prefork; i++) {
        pthread_rwlock_wrlock(&world);
        pid_t pid = fork();
        if (pid == 0)
            prefork_main(w, (int)(options.threads + i));
        if (pid < 0)
            die("fork");
        children++;
        pthread_rwlock_unlock(&world);
    }
}

/* ---- execution ---- */

static char argument[ARGUMENT_BYTES], letter[16 + LETTER_BYTES];

static void write_letter(uint64_t of)
{
    int n = snprintf(letter, sizeof(letter), "CHURN_LETTER=");

    for (size_t i = 0; i < LETTER_BYTES; i++)
        letter[n++] = (char)('a' + mix(of + i) % 26);
    letter[n] = 0;
}

static _Noreturn void exec_with(char **argv)
{
    char *environment[] = {letter, NULL};

    execve("/proc/self/exe", argv, environment);
    wrong("execve: %s", strerror(errno));
}

/* The arguments without what one execution has said to the next; the number of them. */
static size_t copy_arguments(char **argv, size_t max)
{
    size_t n = 0;

    for (; arguments[n] && strcmp(arguments[n], "--state") != 0 && n < max; n++)
        argv[n] = arguments[n];
    return n;
}

/* The same again, which takes over the count of steps and children. */
static _Noreturn void exec_self(void)
{
    char *argv[ARGUMENTS_MAX];
    size_t n, used;

    pthread_rwlock_wrlock(&world); /* the other threads end where they stand */
    face->execs = executions + 1;
    used = (size_t)snprintf(argument, sizeof(argument), "%llu,%llu,%llu,%u",
                            (unsigned long long)options.seed, (unsigned long long)executions + 1,
                            (unsigned long long)until_ns, children);
    for (size_t i = 0; i < options.threads; i++)
        used += (size_t)snprintf(argument + used, sizeof(argument) - used, ",%llu",
                                 (unsigned long long)workers[i].steps);
    n = copy_arguments(argv, ARGUMENTS_MAX - 3);
    argv[n++] = (char *)"--state";
    argv[n++] = argument;
    argv[n] = NULL;
    write_letter(executions + 1);
    exec_with(argv);
}

/* A child becomes a small one, which ends after some steps. */
static _Noreturn void exec_small(struct worker *w)
{
    char seed[32];
    const char *small[] = {"--limit", "300",       "--threads", "1",      "--mib", "4", "--prefork",
                           "0",       "--fork-ms", "0",         "--seed", seed,    NULL};
    char *argv[ARGUMENTS_MAX];
    size_t n = copy_arguments(argv, ARGUMENTS_MAX - sizeof(small) / sizeof(small[0]));

    snprintf(seed, sizeof(seed), "%llu", (unsigned long long)roll(&w->dice, 1 << 30));
    memcpy(&argv[n], small, sizeof(small));
    write_letter(0);
    exec_with(argv);
}

/* Whether the text is one. */
static bool take_state(void)
{
    uint64_t numbers[4 + THREADS_MAX] = {0};
    char *end = (char *)options.state;
    size_t n = 0;

    for (; *end && n < 4 + THREADS_MAX; n++) {
        numbers[n] = strtoull(end, &end, 10);
        if (*end == ',')
            end++;
    }
    if (*end || n != 4 + options.threads)
        return false;
    options.seed = numbers[0];
    executions = numbers[1];
    until_ns = numbers[2];
    children = (unsigned)numbers[3];
    for (size_t i = 0; i < options.threads; i++)
        workers[i].steps = numbers[4 + i];
    return true;
}

/* ---- the loop of a thread, and of a child ---- */

static void answer(struct worker *w)
{
    uint64_t wanted = __atomic_load_n(&face->wanted, __ATOMIC_ACQUIRE);

    if (w->slot < 0 || face->slot[w->slot].answered == wanted)
        return;
    check_all(w);
    __atomic_store_n(&face->slot[w->slot].answered, wanted, __ATOMIC_RELEASE);
}

/* The main thread's: all have looked, and whoever was a child then has ended well. */
static void answer_for_all(void)
{
    uint64_t wanted = __atomic_load_n(&face->wanted, __ATOMIC_ACQUIRE);

    if (temporary_children() > 0)
        return;
    for (size_t i = 0; i < options.threads + options.prefork; i++) {
        if (__atomic_load_n(&face->slot[i].answered, __ATOMIC_ACQUIRE) != wanted)
            return;
    }
    __atomic_store_n(&face->answered, wanted, __ATOMIC_RELEASE);
}

static _Noreturn void finish(struct worker *w)
{
    while (temporary_children() > 0) {
        reap(false);
        sleep_us(1000);
    }
    check_all(w);
    pthread_rwlock_wrlock(&world);
    for (size_t i = 0; i <= THREADS_MAX; i++)
        slice_check(&slices[i], 0, slices[i].pages);
    memcpy(face->state, "ended", 6);
    _exit(0);
}

static void lead(struct worker *w)
{
    uint64_t now = now_ns();

    reap(false);
    if (depth == 0 && until_ns && now > until_ns)
        finish(w);
    if (asked()) {
        if (depth == 0 && options.limit == 0)
            answer_for_all();
        return;
    }
    if (options.fork_ms && depth < DEPTH_MAX && now > next_fork &&
        temporary_children() < CHILDREN_MAX) {
        next_fork = now + options.fork_ms * 1000000 * (depth + 1);
        fork_child(w);
    }
}

/*
 * Whoever has just woken from a freeze waits a little.  A restored process that executes, or ends
 * a thread, before criu has let go of its last thread is killed by criu ("Unable to detach").
 */
static void maybe_exec(struct worker *w)
{
    uint64_t now = now_ns();

    if (depth > 0 || options.exec_ms == 0 || w->number != executions % options.threads || asked())
        return;
    if (now > w->last_ns + GAP_NS && !options.hasty && next_exec < now + REST_NS)
        next_exec = now + REST_NS;
    if (now > next_exec)
        exec_self();
}

/* Takes so many steps at its rate; a child ends early when it is asked, or left alone. */
static void serve(struct worker *w, uint64_t steps)
{
    bool passing = w->slot < 0;

    w->last_ns = now_ns();
    for (uint64_t end = w->steps + steps; steps == UINT64_MAX || w->steps < end;) {
        if (w->leader)
            lead(w);
        if ((depth > 0 && getppid() != father) || (passing && asked()))
            return;
        answer(w);
        maybe_exec(w);
        pay(w);
        if (w->debt_ns < 1e6)
            step(w);
        else
            sleep_us(w->debt_ns < 2e6 ? 1000 : 2000);
    }
}

static void *thread_main(void *arg)
{
    struct worker *w = arg;

    pthread_rwlock_rdlock(&world);
    slice_fill(w->mine[0], &w->dice);
    pthread_rwlock_unlock(&world);
    serve(w, UINT64_MAX);
    return NULL;
}

/* ---- start ---- */

static void make_backings(const char *out)
{
    char path[4096];
    struct stat st;

    snprintf(path, sizeof(path), "%s.map", out);
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (fd < 0 || fstat(fd, &st) < 0)
        die(path);
    /* The same whatever the seed, so that those who have it mapped already see no change. */
    if (st.st_size != BACKING_PAGES * PAGE)
        backing_fill(&file, fd, BACKING_PAGES, 1);
    file = (struct backing){fd, BACKING_PAGES, 1};
    backing_fill(&memfd, memfd_create("churn", MFD_CLOEXEC), BACKING_PAGES, 2);
}

static void make_slices(void)
{
    size_t pages = options.mib * 256 / options.threads;

    for (size_t i = 0; i < options.threads; i++) {
        struct worker *w = &workers[i];

        w->number = i;
        w->slot = options.limit ? -1 : (int)i;
        w->dice.state = mix(options.seed ^ mix(i + 100 * executions));
        slice_init(&slices[i], SLICE_BASE + i * SLICE_DISTANCE, pages, w->dice.state);
        w->mine[w->count++] = &slices[i];
        slices[i].file = &file;
        slices[i].memfd = &memfd;
        slices[i].most = options.most;
    }
}

/* The others are started before the heap is taken: whoever makes a thread uses malloc(). */
static void start_threads(void)
{
    pthread_t t;

    make_world();
    if (options.limit == 0 && pthread_create(&t, NULL, heart_main, NULL) != 0)
        die("thread");
    for (size_t i = 1; i < options.threads; i++) {
        if (pthread_create(&t, NULL, thread_main, &workers[i]) != 0)
            die("thread");
    }
}

static void take_heap(struct worker *w)
{
    struct slice *heap = &slices[THREADS_MAX];

    pthread_rwlock_wrlock(&world);
    slice_init_heap(heap, HEAP_PAGES, w->dice.state);
    w->mine[w->count++] = heap;
    pthread_rwlock_unlock(&world);
}

static void forbid_userfaultfd(void)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_userfaultfd, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog filter = {sizeof(code) / sizeof(code[0]), code};

    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 ||
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) < 0)
        die("seccomp");
}

/* The small one of exec_small(): no slot, no threads, a few steps. */
static _Noreturn void be_small(void)
{
    struct worker *w = &workers[0];

    father = getppid();
    depth = DEPTH_MAX;
    w->leader = true;
    pthread_rwlock_rdlock(&world);
    slice_fill(w->mine[0], &w->dice);
    pthread_rwlock_unlock(&world);
    serve(w, options.limit);
    check_all(w);
    _exit(0);
}

static void run(void)
{
    struct worker *w = &workers[0];
    uint64_t now = now_ns();

    w->leader = true;
    next_fork = now + options.fork_ms * 1000000;
    next_exec = now + options.exec_ms * 1000000;
    take_heap(w);
    pthread_rwlock_rdlock(&world);
    slice_fill(w->mine[0], &w->dice);
    pthread_rwlock_unlock(&world);
    if (executions == 0)
        prefork(w);
    memcpy(face->state, "running", 8);
    serve(w, UINT64_MAX);
}

/* ---- the command line ---- */

static const struct number {
    const char *name;
    uint64_t *value;
    uint64_t min, max;
} number_options[] = {
    {"--seed", &options.seed, 0, UINT64_MAX},
    {"--threads", &options.threads, 1, THREADS_MAX},
    {"--mib", &options.mib, 1, 1 << 20},
    {"--rate", &options.rate, 0, 1 << 20},
    {"--prefork", &options.prefork, 0, SLOTS - THREADS_MAX},
    {"--fork-ms", &options.fork_ms, 0, 1 << 30},
    {"--exec-ms", &options.exec_ms, 0, 1 << 30},
    {"--hasty", &options.hasty, 0, 1},
    {"--seconds", &options.seconds, 0, 1 << 30},
    {"--seccomp", &options.seccomp, 0, 1},
    {"--most", &options.most, 0, 1 << 20},
    {"--limit", &options.limit, 0, 1 << 30},
};

static bool take_number(const char *name, const char *value)
{
    for (size_t i = 0; i < sizeof(number_options) / sizeof(number_options[0]); i++) {
        const struct number *o = &number_options[i];
        char *end;

        if (strcmp(o->name, name) != 0)
            continue;
        *o->value = strtoull(value, &end, 10);
        return *value && !*end && *o->value >= o->min && *o->value <= o->max;
    }
    return false;
}

static bool take_without(const char *name)
{
    bool known = false;

    for (size_t i = 0; i < OPS; i++) {
        if (strncmp(name, "--no-", 5) == 0 && ops[i].group && strcmp(name + 5, ops[i].group) == 0) {
            options.without |= 1U << i;
            known = true;
        }
    }
    return known;
}

static bool take_options(char **argv)
{
    for (; *argv; argv++) {
        if (take_without(*argv))
            continue;
        if (!argv[1])
            return false;
        if (strcmp(*argv, "--state") == 0)
            options.state = argv[1];
        else if (!take_number(*argv, argv[1]))
            return false;
        argv++;
    }
    return true;
}

static void begin(const char *out)
{
    bool small = options.limit > 0;

    open_face(out, !options.state && !small);
    if (small)
        return;
    if (options.state) {
        if (!take_state())
            wrong("what was handed over is damaged: %s", options.state);
    } else {
        options.seed = options.seed ? options.seed : now_ns() % 1000000000;
        until_ns = options.seconds ? now_ns() + options.seconds * 1000000000 : 0;
        face->pid = (uint64_t)getpid();
        face->seed = options.seed;
        memcpy(face->state, "starting", 9);
        dprintf(1, "seed %llu\n", (unsigned long long)options.seed);
        if (options.seccomp)
            forbid_userfaultfd();
    }
}

int main(int argc, char **argv)
{
    if (argc < 2 || !take_options(argv + 2)) {
        fprintf(stderr, "usage: churn FILE [OPTIONS], see churn.c\n");
        return 2;
    }
    arguments = argv;
    if (!options.limit)
        settle();
    begin(argv[1]);
    watch_faults();
    make_backings(argv[1]);
    board_make();
    make_slices();
    start_threads();
    if (options.limit)
        be_small();
    run();
}
