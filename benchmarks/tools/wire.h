/* Shared by the fake upstream and the load generator: clock, histogram, timers, sockets, and HTTP/1.1 bodies.
 *
 * Both are single-threaded, with one epoll loop each. Times are nanoseconds of CLOCK_MONOTONIC, which all processes of
 * a machine share; an event carries the time at which it was sent as `@<ns> <exchange> <sequence>~` in its text. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define NEVER INT64_MAX
#define MILLISECOND 1000000LL
#define SECOND 1000000000LL
#define MARK_LIMIT 64
#define HEAD_LIMIT 65536

static void die(const char *what) {
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(1);
}

static int64_t clock_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * SECOND + t.tv_nsec;
}

static void *grow(void *block, size_t size) {
    void *made = realloc(block, size);
    if (!made) die("realloc");
    return made;
}

/* --- histogram: log-linear, 128 buckets for each power of two; benchmarks/histogram.py reads the same indices. */
#define SUB_BITS 7
#define SUB (1 << SUB_BITS)
#define BUCKETS ((40 - SUB_BITS + 1) * SUB)

struct histogram {
    uint64_t count, sum;
    int64_t max;
    uint32_t buckets[BUCKETS];
};

static void record(struct histogram *h, int64_t value) {
    if (value < 0) value = 0;
    if (value > h->max) h->max = value;
    h->count++;
    h->sum += value;
    if (value >= 1LL << 40) value = (1LL << 40) - 1;
    int index = value;
    if (value >= SUB) {
        int shift = 63 - __builtin_clzll(value) - SUB_BITS;
        index = (shift + 1) * SUB + (int)(value >> shift) - SUB;
    }
    h->buckets[index]++;
}

static void print_histogram(const char *name, const struct histogram *h) {
    printf("\"%s\":{\"count\":%lu,\"sum\":%lu,\"max\":%ld,\"buckets\":[", name, (unsigned long)h->count,
           (unsigned long)h->sum, (long)h->max);
    const char *comma = "";
    for (int i = 0; i < BUCKETS; i++)
        if (h->buckets[i]) {
            printf("%s[%d,%u]", comma, i, h->buckets[i]);
            comma = ",";
        }
    printf("]}");
}

/* --- timers: a binary heap of nodes, each the first member of its connection: a pointer to one points to both. */
struct timer {
    int64_t due;
    int place; /* index in the heap, from 1; 0: not armed */
};

static struct timer **heap;
static int heap_size, heap_room;

static void heap_put(int place, struct timer *node) {
    heap[place] = node;
    node->place = place;
}

static void heap_settle(int place) {
    struct timer *node = heap[place];
    for (; place > 1 && heap[place / 2]->due > node->due; place /= 2) heap_put(place, heap[place / 2]);
    for (int child; (child = 2 * place) <= heap_size; place = child) {
        if (child < heap_size && heap[child + 1]->due < heap[child]->due) child++;
        if (heap[child]->due >= node->due) break;
        heap_put(place, heap[child]);
    }
    heap_put(place, node);
}

static void disarm(struct timer *node) {
    int place = node->place;
    if (!place) return;
    node->place = 0;
    struct timer *last = heap[heap_size--];
    if (last == node) return;
    heap_put(place, last);
    heap_settle(place);
}

static void arm(struct timer *node, int64_t due) {
    node->due = due;
    if (!node->place) {
        if (heap_size + 2 > heap_room) heap = grow(heap, (heap_room = 2 * heap_room + 64) * sizeof *heap);
        heap_put(++heap_size, node);
    }
    heap_settle(node->place);
}

/* Wait until a socket is ready or the time `until`, in whole milliseconds where epoll_pwait2 is missing. */
static int wait_events(int epoll, struct epoll_event *events, int room, int64_t until) {
    int64_t left = until == NEVER ? SECOND : until - clock_ns();
    if (left < 0) left = 0;
#ifdef SYS_epoll_pwait2
    static int missing;
    if (!missing) {
        struct timespec timeout = {left / SECOND, left % SECOND};
        int n = syscall(SYS_epoll_pwait2, epoll, events, room, &timeout, NULL, 0);
        if (n >= 0 || errno == EINTR) return n < 0 ? 0 : n;
        missing = 1;
    }
#endif
    int n = epoll_wait(epoll, events, room, (left + MILLISECOND - 1) / MILLISECOND);
    if (n < 0 && errno != EINTR) die("epoll_wait");
    return n < 0 ? 0 : n;
}

static void watch(int epoll, int operation, int fd, uint32_t mask, void *what) {
    struct epoll_event event = {.events = mask, .data.ptr = what};
    if (epoll_ctl(epoll, operation, fd, &event)) die("epoll_ctl");
}

static void raise_file_limit(void) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

static struct sockaddr_in loopback(int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
}

static void set_nodelay(int fd) {
    int one = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

/* --- heads and bodies */

/* Return the value of a header (name with its colon, in any case), or NULL. `head` ends with a NUL. */
static const char *header(const char *head, const char *name) {
    size_t length = strlen(name);
    for (const char *line = strstr(head, "\r\n"); line; line = strstr(line + 2, "\r\n"))
        if (strncasecmp(line + 2, name, length) == 0) {
            line += 2 + length;
            return line + strspn(line, " ");
        }
    return NULL;
}

static int header_is(const char *head, const char *name, const char *value) {
    const char *found = header(head, name);
    return found && strncasecmp(found, value, strlen(value)) == 0;
}

enum framing { NO_BODY, COUNTED, CHUNKED, UNTIL_CLOSE };
enum chunk_state { SIZE, SIZE_REST, SIZE_LF, DATA, DATA_CR, DATA_LF, TRAILER, TRAILER_LINE, LAST_LF };

struct body {
    enum framing framing;
    enum chunk_state state;
    uint64_t left;
    int digits, done;
};

static struct body body_of(const char *head, enum framing without) {
    struct body body = {.framing = without};
    const char *length = header(head, "content-length:");
    if (header_is(head, "transfer-encoding:", "chunked")) body.framing = CHUNKED;
    else if (length) {
        body.framing = COUNTED;
        body.left = strtoull(length, NULL, 10);
    }
    body.done = body.framing == NO_BODY || (body.framing == COUNTED && body.left == 0);
    return body;
}

static int hex_digit(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    c |= 32;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Parse one byte of chunked framing (RFC 9112 section 7.1); 0, or -1 if it is not valid. */
static int chunk_byte(struct body *b, char c) {
    switch (b->state) {
    case SIZE:
        if (hex_digit(c) >= 0 && b->digits < 15) {
            b->left = b->left * 16 + hex_digit(c);
            b->digits++;
            return 0;
        }
        if (!b->digits || (c != '\r' && c != ';' && c != ' ')) return -1;
        b->state = c == '\r' ? SIZE_LF : SIZE_REST;
        return 0;
    case SIZE_REST:
        if (c == '\r') b->state = SIZE_LF;
        return 0;
    case SIZE_LF:
        b->digits = 0;
        b->state = b->left ? DATA : TRAILER;
        return c == '\n' ? 0 : -1;
    case DATA_CR:
        b->state = DATA_LF;
        return c == '\r' ? 0 : -1;
    case DATA_LF:
        b->state = SIZE;
        return c == '\n' ? 0 : -1;
    case TRAILER:
        b->state = c == '\r' ? LAST_LF : TRAILER_LINE;
        return 0;
    case TRAILER_LINE:
        if (c == '\n') b->state = TRAILER;
        return 0;
    case LAST_LF:
        b->done = 1;
        return c == '\n' ? 0 : -1;
    case DATA:
        break;
    }
    return -1;
}

/* Move *at towards `end`, over framing, to the end of the next piece of data; return the length of that piece. 0: no
 * more data in the input, or the body is done. -1: broken framing. */
static ssize_t next_piece(struct body *b, const char **at, const char *end) {
    while (*at < end && !b->done) {
        size_t here = end - *at;
        if (b->framing == CHUNKED && b->state != DATA) {
            if (chunk_byte(b, *(*at)++)) return -1;
            continue;
        }
        if (b->framing != UNTIL_CLOSE) {
            if (here > b->left) here = b->left;
            b->left -= here;
            if (!b->left && b->framing == COUNTED) b->done = 1;
            if (!b->left && b->framing == CHUNKED) b->state = DATA_CR;
        }
        *at += here;
        return here;
    }
    return 0;
}
