/* SPDX-License-Identifier: Apache-2.0 */
/* What can be done to memory, and what it must be afterwards. */
#include "churn.h"

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif

#define HUGE_PAGES 512 /* in a huge page */
#define RUN_MAX 2048   /* at a time: 8 MiB */

struct range {
    size_t first, count;
};

static const char *const kind_names[KINDS] = {"a hole", "anonymous", "shared", "private of a file",
                                              "private of a memfd"};

/* ---- records ---- */

static uint64_t record_hash(const struct page *p, size_t i)
{
    uint64_t small = (uint64_t)p->kind | (uint64_t)p->prot << 8 | (uint64_t)p->maybe << 16 |
                     (uint64_t)p->origin << 32;

    return mix(p->key + mix(i)) + mix(p->was ^ small) + mix((uint64_t)p->poke << 32 | p->area);
}

static void set(struct slice *s, size_t i, struct page p)
{
    struct page *record = &s->page[i];

    s->sum += record_hash(&p, i) - record_hash(record, i);
    s->mapped += p.kind != HOLE;
    s->mapped -= record->kind != HOLE;
    *record = p;
}

static void set_content(struct slice *s, size_t i, uint64_t key)
{
    struct page p = s->page[i];

    p.was = p.key;
    p.key = key;
    p.poke = 0;
    p.maybe = false;
    set(s, i, p);
}

static void init_records(struct slice *s)
{
    s->page = mmap(NULL, s->pages * sizeof(*s->page), PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (s->page == MAP_FAILED)
        die("records");
    for (size_t i = 0; i < s->pages; i++)
        s->sum += record_hash(&s->page[i], i);
}

void slice_init(struct slice *s, uintptr_t base, size_t pages, uint64_t seed)
{
    *s = (struct slice){.base = (unsigned char *)base, .pages = pages, .seed = seed};
    init_records(s);
}

void slice_init_heap(struct slice *s, size_t pages, uint64_t seed)
{
    uintptr_t now = (uintptr_t)syscall(SYS_brk, 0), base = (now + PAGE - 1) / PAGE * PAGE;

    if ((uintptr_t)syscall(SYS_brk, base) != base)
        die("brk");
    slice_init(s, base, pages, seed);
    s->heap = true;
}

static uint64_t origin_key(const struct backing *b, size_t page)
{
    return mix(b->seed ^ page) | 1;
}

void backing_fill(struct backing *b, int fd, size_t pages, uint64_t seed)
{
    uint64_t words[PAGE_WORDS];

    *b = (struct backing){fd, pages, seed};
    for (size_t i = 0; i < pages; i++) {
        page_fill(words, origin_key(b, i));
        if (pwrite(fd, words, PAGE, (off_t)(i * PAGE)) != PAGE)
            die("file");
    }
}

static const struct backing *backing_of(const struct slice *s, const struct page *p)
{
    return p->kind == FILE_PRIVATE ? s->file : s->memfd;
}

/* ---- content ---- */

static uint64_t *words_of(const struct slice *s, size_t i)
{
    return (uint64_t *)(s->base + i * PAGE);
}

static size_t poke_place(const struct page *p)
{
    return p->poke ? mix(p->key) % PAGE_WORDS : PAGE_WORDS;
}

static uint64_t poke_word(const struct page *p)
{
    return mix(p->key ^ ~(uint64_t)p->poke);
}

static bool page_right(const struct slice *s, size_t i)
{
    const struct page *p = &s->page[i];
    const uint64_t *words = words_of(s, i);
    size_t place = poke_place(p);

    return page_is(words, p->key, place) && (!p->poke || words[place] == poke_word(p));
}

/* Whether nothing was written to a page that is private of a file. */
static bool is_origin(const struct slice *s, const struct page *p)
{
    return (p->kind == FILE_PRIVATE || p->kind == MEMFD_PRIVATE) && !p->poke &&
           p->key == origin_key(backing_of(s, p), p->origin);
}

/* What is on the page instead. */
static const char *diagnose(const struct page *p, const uint64_t *words)
{
    if (page_is(words, 0, PAGE_WORDS))
        return "it is all zeroes";
    if (page_is(words, p->key, poke_place(p)))
        return "only the word written last is missing";
    if (page_is(words, p->key, mix(p->key) % PAGE_WORDS))
        return "a word was written to it that should not be there";
    if (p->was && page_is(words, p->was, mix(p->was) % PAGE_WORDS))
        return "it is what was there before";
    return "it is nothing that was there just before";
}

static _Noreturn void page_wrong(const struct slice *s, size_t i)
{
    const struct page *p = &s->page[i];
    uint64_t want[PAGE_WORDS] = {0}, found[PAGE_WORDS];
    size_t byte = 0;

    memcpy(found, words_of(s, i), PAGE); /* it may change under us, if somebody else fills it */
    if (p->key)
        page_fill(want, p->key);
    if (p->poke)
        want[poke_place(p)] = poke_word(p);
    while (byte < PAGE && ((unsigned char *)want)[byte] == ((unsigned char *)found)[byte])
        byte++;
    if (byte == PAGE)
        wrong("page %p was wrong, and is right when looked at again", (void *)words_of(s, i));
    wrong("%p: expected %02x, found %02x; the page is %s%s, prot %d, area %u: %s",
          (void *)((unsigned char *)words_of(s, i) + byte), ((unsigned char *)want)[byte],
          ((unsigned char *)found)[byte], s->heap ? "of the heap" : kind_names[p->kind],
          is_origin(s, p) ? ", as it is in that" : "", p->prot, p->area, diagnose(p, found));
}

void slice_check(struct slice *s, size_t first, size_t count)
{
    for (size_t i = first; i < s->pages && i < first + count; i++) {
        if (!(s->page[i].prot & PROT_READ) || page_right(s, i))
            continue;
        if (!s->page[i].maybe || !page_is(words_of(s, i), 0, PAGE_WORDS))
            page_wrong(s, i);
        set_content(s, i, 0); /* the kernel has taken it: from now on it is zeroes */
    }
}

void slice_check_records(const struct slice *s)
{
    uint64_t sum = 0;

    for (size_t i = 0; i < s->pages; i++)
        sum += record_hash(&s->page[i], i);
    if (sum != s->sum)
        wrong("the records of slice %p at %p do not add up", (void *)s->base, (void *)s->page);
}

static void write_page(struct slice *s, size_t i)
{
    uint64_t key = mix(s->seed ^ ++s->writes) | 1;

    page_fill(words_of(s, i), key);
    set_content(s, i, key);
}

static void poke_page(struct slice *s, size_t i)
{
    struct page p = s->page[i];

    p.poke = (uint32_t)(++s->writes % UINT32_MAX) + 1;
    words_of(s, i)[poke_place(&p)] = poke_word(&p);
    set(s, i, p);
}

static bool writable(const struct slice *s, size_t i)
{
    return s->page[i].prot & PROT_WRITE;
}

/* ---- choosing ---- */

/* Mostly few pages, now and then many. */
static size_t pick_count(const struct slice *s, struct dice *d, size_t max)
{
    static const size_t most[] = {RUN_MAX, 512, 512, 64, 64, 64, 64, 64, 16, 16, 16,
                                  16,      16,  16,  16, 16, 4,  4,  4,  4,  4,  4,
                                  4,       4,   1,   1,  1,  1,  1,  1,  1,  1};
    size_t count = 1 + roll(d, most[roll(d, sizeof(most) / sizeof(most[0]))]);

    if (s->most && count > s->most)
        count = s->most;
    return count < max ? count : max;
}

static struct range pick(const struct slice *s, struct dice *d)
{
    size_t first = roll(d, s->pages);

    return (struct range){first, pick_count(s, d, s->pages - first)};
}

/* Shortens the range to what is mapped (and of that kind, if one is given) without a gap. */
static struct range clip(const struct slice *s, struct range r, enum kind kind)
{
    size_t n = 0;

    while (n < r.count && s->page[r.first + n].kind != HOLE &&
           (kind == HOLE || s->page[r.first + n].kind == kind))
        n++;
    r.count = n;
    return r;
}

/* Part of an area, or all. */
static bool pick_area(const struct slice *s, struct dice *d, struct range *ret)
{
    size_t i = roll(d, s->pages), first = i, end = i;

    if (s->page[i].kind == HOLE)
        return false;
    while (first > 0 && s->page[first - 1].area == s->page[i].area)
        first--;
    while (end < s->pages && s->page[end].area == s->page[i].area)
        end++;
    *ret = (struct range){first, end - first};
    if (roll(d, 3) || ret->count > RUN_MAX)
        *ret = (struct range){i, pick_count(s, d, end - i)};
    return true;
}

/* A place for so many pages that has none of these; whatever lies there. */
static bool pick_apart(const struct slice *s, struct dice *d, struct range from, struct range *ret)
{
    if (ret->count > s->pages)
        return false;
    ret->first = roll(d, s->pages - ret->count + 1);
    return ret->first + ret->count <= from.first || from.first + from.count <= ret->first;
}

/* From this page on it is another area. */
static void cut(struct slice *s, size_t at)
{
    if (at == 0 || at >= s->pages || s->page[at].kind == HOLE ||
        s->page[at].area != s->page[at - 1].area)
        return;
    uint32_t old = s->page[at].area, fresh = ++s->areas;
    for (size_t i = at; i < s->pages && s->page[i].area == old; i++) {
        struct page p = s->page[i];

        p.area = fresh;
        set(s, i, p);
    }
}

static void cut_out(struct slice *s, struct range r)
{
    cut(s, r.first);
    cut(s, r.first + r.count);
}

static void *address(const struct slice *s, struct range r)
{
    return s->base + r.first * PAGE;
}

static void set_holes(struct slice *s, struct range r)
{
    for (size_t i = 0; i < r.count; i++)
        set(s, r.first + i, (struct page){0});
}

static void unmap(struct slice *s, struct range r)
{
    if (r.count && munmap(address(s, r), r.count * PAGE) < 0)
        die("munmap");
    set_holes(s, r);
}

/* ---- mapping ---- */

static size_t write_some(struct slice *s, struct dice *d, struct range r)
{
    static const size_t steps[] = {0, 1, 1, 1, 2, 7, 16};
    size_t step = steps[roll(d, sizeof(steps) / sizeof(steps[0]))], n = 0;

    for (size_t i = 0; step && i < r.count; i += step, n++)
        write_page(s, r.first + i);
    return n * PAGE;
}

/* Maps over whatever is there. */
static void map_over(struct slice *s, struct range r, enum kind kind, int flags, int fd,
                     size_t origin)
{
    uint32_t area = ++s->areas;

    cut_out(s, r);
    if (mmap(address(s, r), r.count * PAGE, PROT_READ | PROT_WRITE, flags | MAP_FIXED, fd,
             (off_t)(origin * PAGE)) == MAP_FAILED)
        die("mmap");
    for (size_t i = 0; i < r.count; i++) {
        struct page p = {.area = area,
                         .kind = (uint8_t)kind,
                         .prot = PROT_READ | PROT_WRITE,
                         .was = s->page[r.first + i].key,
                         .origin = (uint32_t)(origin + i)};

        if (kind == FILE_PRIVATE || kind == MEMFD_PRIVATE)
            p.key = origin_key(backing_of(s, &p), origin + i);
        set(s, r.first + i, p);
    }
}

size_t slice_map(struct slice *s, struct dice *d)
{
    struct range r = pick(s, d);

    map_over(s, r, ANON, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return write_some(s, d, r);
}

size_t slice_map_huge(struct slice *s, struct dice *d)
{
    size_t units = s->pages / HUGE_PAGES;

    if (units == 0)
        return 0;
    size_t first = roll(d, units), most = units - first < 4 ? units - first : 4;
    struct range r = {first * HUGE_PAGES, (1 + roll(d, most)) * HUGE_PAGES};
    map_over(s, r, ANON, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (madvise(address(s, r), r.count * PAGE, MADV_HUGEPAGE) < 0 && errno != EINVAL)
        die("MADV_HUGEPAGE");
    return write_some(s, d, r);
}

/* Of this process alone, or two would write to it: shared between processes is the board. */
size_t slice_map_shared(struct slice *s, struct dice *d)
{
    struct range r = pick(s, d);
    int fd = roll(d, 2) ? memfd_create("shared", MFD_CLOEXEC) : -1;

    if (fd >= 0 && ftruncate(fd, (off_t)(r.count * PAGE)) < 0)
        die("memfd");
    map_over(s, r, SHARED, fd < 0 ? MAP_SHARED | MAP_ANONYMOUS : MAP_SHARED, fd, 0);
    if (fd >= 0)
        close(fd);
    if (madvise(address(s, r), r.count * PAGE, MADV_DONTFORK) < 0)
        die("MADV_DONTFORK");
    return write_some(s, d, r);
}

/*
 * Which page of the file goes by the place, so wherever it is moved.  If a child had another part
 * of it exactly where its parent has one, and be it a page that was left of it, godwit would not
 * move it: criu gives a child its parent's then (CRIU criu/mem.c, check_cow_vmas(): it compares all
 * but the offset).
 */
static size_t map_private(struct slice *s, struct dice *d, enum kind kind, const struct backing *b)
{
    struct range r = pick(s, d);
    size_t offset = r.first % b->pages, room = b->pages - offset;

    r.count = r.count < room ? r.count : room;
    map_over(s, r, kind, MAP_PRIVATE, b->fd, offset);
    return roll(d, 2) ? write_some(s, d, r) : 0;
}

size_t slice_map_file(struct slice *s, struct dice *d)
{
    return map_private(s, d, FILE_PRIVATE, s->file);
}

size_t slice_map_memfd(struct slice *s, struct dice *d)
{
    return map_private(s, d, MEMFD_PRIVATE, s->memfd);
}

size_t slice_unmap(struct slice *s, struct dice *d)
{
    struct range r = pick(s, d);

    cut_out(s, r);
    unmap(s, r);
    return 0;
}

void slice_fill(struct slice *s, struct dice *d)
{
    struct range all = {0, s->pages};

    if (mmap(s->base, s->pages * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE,
             -1, 0) != (void *)s->base)
        die("the place of a slice");
    map_over(s, all, ANON, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (size_t i = 0; i < s->pages; i++) {
        if (roll(d, 8))
            write_page(s, i);
    }
}

void slice_inherit(struct slice *s, uint64_t seed)
{
    s->seed ^= seed;
    for (size_t i = 0; i < s->pages; i++) {
        if (s->page[i].kind == SHARED)
            set(s, i, (struct page){0});
    }
}

/* ---- moving ---- */

/* The records of what was moved; what came on top is zeroes. */
static void move_records(struct slice *s, struct range from, struct range to)
{
    struct page fresh = {.kind = s->page[from.first].kind, .prot = s->page[from.first].prot};
    uint32_t area = ++s->areas;

    for (size_t i = 0; i < to.count; i++) {
        struct page p = i < from.count ? s->page[from.first + i] : fresh;

        p.area = area;
        set(s, to.first + i, p);
    }
}

/*
 * 0, or -1 if the kernel would not.  It says EFAULT if the pages are in several mappings, which
 * they are if somebody else has made a difference between them, as by UFFDIO_REGISTER.  From Linux
 * 6.17 on some of them may have been moved by then, and which is not told: so none stays.
 */
static int move(struct slice *s, struct range from, struct range to, int flags)
{
    cut_out(s, from);
    cut_out(s, to);
    if (mremap(address(s, from), from.count * PAGE, to.count * PAGE,
               MREMAP_MAYMOVE | MREMAP_FIXED | flags, address(s, to)) != MAP_FAILED)
        return 0;
    if (errno != EFAULT)
        die("mremap");
    __atomic_fetch_add(&face->refused, 1, __ATOMIC_RELAXED);
    unmap(s, from);
    unmap(s, to);
    return -1;
}

/* To where the same pages of the file belong, see map_private(). */
static bool pick_place_of_file(const struct slice *s, struct range from, struct range *to)
{
    size_t distance = backing_of(s, &s->page[from.first])->pages;

    to->first = from.first < distance ? from.first + distance : from.first - distance;
    return to->first + to->count <= s->pages;
}

size_t slice_move(struct slice *s, struct dice *d)
{
    struct range from, to = {0};
    if (!pick_area(s, d, &from))
        return 0;
    to.count = from.count;
    size_t how = roll(d, 4);
    if (how == 0 && s->page[from.first].kind == ANON)
        to.count += pick_count(s, d, s->pages);
    else if (how == 1)
        to.count = 1 + roll(d, from.count);
    bool of_file =
        s->page[from.first].kind == FILE_PRIVATE || s->page[from.first].kind == MEMFD_PRIVATE;
    if (!(of_file ? pick_place_of_file(s, from, &to) : pick_apart(s, d, from, &to)) ||
        move(s, from, to, 0) < 0)
        return 0;
    move_records(s, from, to);
    set_holes(s, from);
    return 0;
}

/* Moves the pages away from a mapping that stays. */
size_t slice_leave(struct slice *s, struct dice *d)
{
    struct range from, to;
    if (!pick_area(s, d, &from) || s->page[from.first].kind != ANON)
        return 0;
    to.count = from.count;
    if (!pick_apart(s, d, from, &to) || move(s, from, to, MREMAP_DONTUNMAP) < 0)
        return 0;
    move_records(s, from, to);
    for (size_t i = 0; i < from.count; i++)
        set_content(s, from.first + i, 0);
    return 0;
}

size_t slice_grow(struct slice *s, struct dice *d)
{
    struct range r;
    size_t holes = 0;

    if (!pick_area(s, d, &r) || s->page[r.first].kind != ANON)
        return 0;
    size_t end = r.first + r.count;
    while (end + holes < s->pages && s->page[end + holes].kind == HOLE)
        holes++;
    if (holes == 0)
        return 0;
    struct page fresh = {
        .kind = ANON, .prot = s->page[r.first].prot, .area = s->page[r.first].area};
    size_t more = pick_count(s, d, holes);
    if (mremap(address(s, r), r.count * PAGE, (r.count + more) * PAGE, 0) == MAP_FAILED)
        return 0;
    for (size_t i = 0; i < more; i++)
        set(s, end + i, fresh);
    return 0;
}

size_t slice_shrink(struct slice *s, struct dice *d)
{
    struct range r;
    if (!pick_area(s, d, &r))
        return 0;
    size_t stays = 1 + roll(d, r.count);
    struct range rest = {r.first + stays, r.count - stays};
    cut_out(s, rest);
    if (mremap(address(s, r), r.count * PAGE, stays * PAGE, 0) == MAP_FAILED) {
        if (errno != EFAULT)
            die("mremap, smaller");
        __atomic_fetch_add(&face->refused, 1, __ATOMIC_RELAXED);
    }
    unmap(s, rest);
    return 0;
}

/* ---- advice and protection ---- */

size_t slice_protect(struct slice *s, struct dice *d)
{
    static const uint8_t prots[] = {PROT_NONE, PROT_READ, PROT_READ | PROT_WRITE,
                                    PROT_READ | PROT_WRITE};
    struct range r = clip(s, pick(s, d), HOLE);
    uint8_t prot = prots[roll(d, sizeof(prots))];

    cut_out(s, r);
    if (r.count && mprotect(address(s, r), r.count * PAGE, prot) < 0)
        die("mprotect");
    for (size_t i = 0; i < r.count; i++) {
        struct page p = s->page[r.first + i];

        p.prot = prot;
        set(s, r.first + i, p);
    }
    return 0;
}

/* What is left of a page that MADV_DONTNEED was told of. */
static uint64_t key_without(const struct slice *s, const struct page *p)
{
    if (p->kind == ANON)
        return 0;
    return origin_key(backing_of(s, p), p->origin);
}

size_t slice_discard(struct slice *s, struct dice *d)
{
    struct range r = clip(s, pick(s, d), HOLE);

    if (r.count && madvise(address(s, r), r.count * PAGE, MADV_DONTNEED) < 0)
        die("MADV_DONTNEED");
    for (size_t i = 0; i < r.count; i++) {
        const struct page *p = &s->page[r.first + i];

        if (p->kind != SHARED)
            set_content(s, r.first + i, key_without(s, p));
    }
    return 0;
}

size_t slice_free(struct slice *s, struct dice *d)
{
    struct range r = clip(s, pick(s, d), ANON);

    if (r.count && madvise(address(s, r), r.count * PAGE, MADV_FREE) < 0)
        die("MADV_FREE");
    for (size_t i = 0; i < r.count; i++) {
        struct page p = s->page[r.first + i];

        p.maybe = p.key || p.poke;
        set(s, r.first + i, p);
    }
    return 0;
}

/* A hole in the shared object itself. */
size_t slice_remove(struct slice *s, struct dice *d)
{
    struct range r = clip(s, pick(s, d), SHARED);

    for (size_t i = 0; i < r.count; i++) {
        if (!writable(s, r.first + i))
            r.count = i;
    }
    if (r.count && madvise(address(s, r), r.count * PAGE, MADV_REMOVE) < 0)
        die("MADV_REMOVE");
    for (size_t i = 0; i < r.count; i++)
        set_content(s, r.first + i, 0);
    return 0;
}

size_t slice_brk(struct slice *s, struct dice *d)
{
    size_t now = s->mapped, then = roll(d, s->pages + 1);
    uintptr_t end = (uintptr_t)(s->base + then * PAGE);

    if ((uintptr_t)syscall(SYS_brk, end) != end)
        return 0;
    if (then <= now) {
        set_holes(s, (struct range){then, now - then});
        return 0;
    }
    for (size_t i = now; i < then; i++)
        set(s, i, (struct page){.kind = ANON, .prot = PROT_READ | PROT_WRITE, .area = 1});
    return write_some(s, d, (struct range){now, then - now});
}

/* ---- reading and writing ---- */

size_t slice_write(struct slice *s, struct dice *d)
{
    struct range r = pick(s, d);
    size_t n = 0;

    for (size_t i = r.first; i < r.first + r.count; i++) {
        if (!writable(s, i))
            continue;
        write_page(s, i);
        n++;
    }
    return n * PAGE;
}

/* A word on each of many pages: what dirties most for the least. */
size_t slice_poke(struct slice *s, struct dice *d)
{
    struct range r = pick(s, d);
    size_t step = 1 + roll(d, 8), n = 0;

    for (size_t i = r.first; i < r.first + r.count; i += step) {
        if (!writable(s, i))
            continue;
        if (s->page[i].maybe)
            write_page(s, i); /* what the other words are is not known */
        else
            poke_page(s, i);
        n++;
    }
    return n * PAGE;
}

size_t slice_zero(struct slice *s, struct dice *d)
{
    struct range r = pick(s, d);
    size_t n = 0;

    for (size_t i = r.first; i < r.first + r.count; i++) {
        if (!writable(s, i))
            continue;
        memset(words_of(s, i), 0, PAGE);
        set_content(s, i, 0);
        n++;
    }
    return n * PAGE;
}

size_t slice_look(struct slice *s, struct dice *d)
{
    struct range r = pick(s, d);

    slice_check(s, r.first, r.count);
    return r.count * PAGE / 8;
}
