/* The load generator: starts exchanges on a schedule that does not depend on the server, and measures the answers.
 *
 * Two kinds of arrival:
 *   --slots N    N connections; each starts once within --ramp-ms, and with --repeat 1 again as soon as it has ended
 *   --rate R     an exchange every 1/R seconds, on an idle connection (--keepalive 1) or a new one
 * Phases: ramp, --warm-ms, then the measured window (--window-ms), then up to --drain-ms until all have ended.
 * With slots, the window opens when all have received their first event, at most --open-limit-ms after --warm-ms.
 * Prints `window-open NS` and `window-close NS` when they happen, and one line of JSON at the end.
 *
 * Latency of an event: receipt - timestamp. First event: receipt - the time for which the exchange was scheduled.
 * The exchange and sequence number of every event are checked, and the framing and the last event of every answer.
 *
 * With --http2 N, the exchanges are streams of N HTTP/2 connections. With --mix, exchanges are of several kinds, in a fixed
 * order: `share/fewest/most/bytes,...` has the share of a kind in percent, the bounds of its number of events (0: an answer
 * of JSON), and the size of its request body; the prompt tells the upstream the number. --spread 1 prefers new connections
 * to idle ones, and of those the one that was idle for longest, so that all of --max-open are in use. */
#include "wire.h"

static int epoll; /* also of http2.h */
#include "http2.h"
#include "requests.h"

#define SLOW_FROM 5000000000L

enum state { FREE, CONNECTING, SENDING, HEAD, BODY, IDLE };
enum problem { REFUSED, STATUS, TRUNCATED, CORRUPT, UNFINISHED, OVERFLOW, PROBLEMS };
static const char *problem_names[] = {"refused", "status", "truncated", "corrupt", "unfinished", "overflow"};

struct conn {
    struct timer timer; /* must be first; for the cancel, or the next byte of a slow reader */
    int fd, slow, keep_alive, tail_len, mark_len, in_window, reused, status, was_open;
    enum state state;
    char *out, head[HEAD_LIMIT + 1], mark[MARK_LIMIT + 1], tail[64];
    size_t out_len, out_at, head_len;
    struct body body;
    long exchange, sequence, expected; /* events; 0: any number */
    const struct kind *kind;
    int64_t scheduled;
    struct conn *next_idle, *previous_idle;
    struct link *link; /* of HTTP/2; then fd, head and body are not used */
    struct stream stream;
};

static struct conn *conns, *idle_head, *idle_tail;
static struct link *links;
static long conns_room, open_exchanges, first_events, next_id, smooth_started;
static struct histogram latency, first_event, duration;
static long events_seen, finished, started, problems[PROBLEMS];
static long events_in_window, finished_in_window, started_in_window;
static int in_window, arrivals_over, last_status;
static int64_t (*cancels)[2];
static size_t cancels_len, cancels_room;
static struct sockaddr_in address;

/* --- exchanges */
static void leave_idle(struct conn *c) {
    if (c->previous_idle) c->previous_idle->next_idle = c->next_idle;
    else idle_head = c->next_idle;
    if (c->next_idle) c->next_idle->previous_idle = c->previous_idle;
    else idle_tail = c->previous_idle;
}

static void close_conn(struct conn *c) {
    if (c->state == FREE) return;
    if (c->state == IDLE) leave_idle(c);
    else open_exchanges--;
    disarm(&c->timer);
    if (c->link) link_drop(c->link, &c->stream);
    else close(c->fd);
    c->state = FREE;
}

static void begin(struct conn *c, int64_t scheduled);

/* Record a failure. A request on an idle connection that the server was just closing is not one: it is retried
 * (RFC 9112 section 9.3.1). */
static void fail(struct conn *c, enum problem why) {
    int retry = c->reused && c->head_len == 0 && why == TRUNCATED;
    int again = !retry && options.repeat && !arrivals_over && !c->slow && why != REFUSED;
    if (!retry) problems[why]++;
    else started--;
    close_conn(c);
    if (retry || again) begin(c, again ? clock_ns() : c->scheduled);
}

static void send_request(struct conn *c) {
    while (c->out_at < c->out_len) {
        ssize_t n = send(c->fd, c->out + c->out_at, c->out_len - c->out_at, MSG_NOSIGNAL);
        if (n < 0 && errno == EAGAIN) {
            watch(epoll, EPOLL_CTL_MOD, c->fd, EPOLLIN | EPOLLOUT, c);
            return;
        }
        if (n < 0) {
            fail(c, TRUNCATED);
            return;
        }
        c->out_at += n;
    }
    watch(epoll, EPOLL_CTL_MOD, c->fd, c->slow ? 0 : EPOLLIN, c);
    c->state = HEAD;
    if (c->slow) arm(&c->timer, clock_ns() + options.slow_ms * MILLISECOND);
    else if (options.cancel && *options.cancel == 'w') arm(&c->timer, clock_ns() + options.cancel_ms * MILLISECOND);
}

/* Start an exchange as a stream; slots take turns on the links. */
static void begin_stream(struct conn *c) {
    size_t head_len = c->kind->head_len;
    c->link = &links[(c - conns) % options.http2];
    c->state = HEAD;
    c->keep_alive = 0;
    c->stream = (struct stream){.owner = c, .block = c->out, .block_len = head_len, .body = c->out + head_len,
                                .body_len = c->out_len - head_len};
    if (options.cancel && *options.cancel == 'w') arm(&c->timer, clock_ns() + options.cancel_ms * MILLISECOND);
    if (!link_request(c->link, &c->stream)) fail(c, REFUSED);
}

/* Start an exchange on the idle connection of `c`, or on a new one. */
static void begin(struct conn *c, int64_t scheduled) {
    int connected = c->state == IDLE;
    if (connected) leave_idle(c);
    c->reused = connected;
    c->scheduled = scheduled;
    c->in_window = in_window;
    c->exchange = c->slow ? SLOW_FROM + options.first_id + (c - conns) : options.first_id + next_id++;
    c->sequence = c->head_len = c->tail_len = c->mark_len = c->out_at = c->was_open = 0;
    c->kind = choose_kind(c->exchange - options.first_id, &c->expected);
    c->out = grow(c->out, c->kind->length);
    c->out_len = c->kind->length;
    write_request(c->kind, c->out, c->exchange, c->expected);
    open_exchanges++;
    started++;
    started_in_window += in_window;
    c->state = SENDING;
    if (options.http2) {
        begin_stream(c);
        return;
    }
    if (connected) {
        send_request(c);
        return;
    }
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->fd < 0) die("socket");
    set_nodelay(c->fd);
    int small = 4096;
    if (c->slow) setsockopt(c->fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    watch(epoll, EPOLL_CTL_ADD, c->fd, EPOLLOUT, c);
    c->state = CONNECTING;
    if (connect(c->fd, (struct sockaddr *)&address, sizeof address) && errno != EINPROGRESS) fail(c, REFUSED);
}

/* Start an exchange that is due: on an idle connection, or on a new one if fewer than --max-open are in use. */
static void arrive(int64_t scheduled) {
    struct conn *c = options.spread ? NULL : idle_head;
    for (long i = 0; !c && i < conns_room; i++)
        if (conns[i].state == FREE) c = &conns[i];
    if (!c) c = idle_tail;
    if (c) begin(c, scheduled);
    else problems[OVERFLOW]++;
}

/* --- answers */
static void cancel(struct conn *c) {
    if (cancels_len == cancels_room) cancels = grow(cancels, (cancels_room = 2 * cancels_room + 64) * sizeof *cancels);
    cancels[cancels_len][0] = c->exchange;
    cancels[cancels_len++][1] = clock_ns();
    close_conn(c);
    finished++;
}

static int on_event(struct conn *c, int64_t now) {
    long stamp, exchange, sequence;
    c->mark[c->mark_len] = 0;
    c->mark_len = 0;
    if (sscanf(c->mark, "@%ld %ld %ld~", &stamp, &exchange, &sequence) != 3) return -1;
    if (exchange != c->exchange || sequence != c->sequence++) return -1;
    events_seen++;
    events_in_window += in_window;
    if (in_window) record(&latency, now - stamp);
    if (sequence > 0) return 0;
    first_events++;
    c->was_open = 1;
    if (c->in_window) record(&first_event, now - c->scheduled);
    if (options.cancel && *options.cancel == 's') arm(&c->timer, now + options.cancel_ms * MILLISECOND);
    return 0;
}

/* Find the marks in a piece of the body; a mark may be split between pieces. -1: not as the upstream sent it. */
static int scan(struct conn *c, const char *at, size_t length, int64_t now) {
    size_t kept = length < sizeof c->tail ? length : sizeof c->tail, old = sizeof c->tail - kept;
    if (old > (size_t)c->tail_len) old = c->tail_len;
    memmove(c->tail, c->tail + c->tail_len - old, old);
    memcpy(c->tail + old, at + length - kept, kept);
    c->tail_len = old + kept;
    for (const char *end = at + length; at < end;) {
        if (c->mark_len == 0 && !(at = memchr(at, '@', end - at))) return 0;
        if (c->mark_len == MARK_LIMIT) return -1;
        c->mark[c->mark_len++] = *at;
        if (*at++ == '~' && on_event(c, now)) return -1;
    }
    return 0;
}

static void finish(struct conn *c, int64_t now) {
    int is_complete = !c->kind->is_stream || memmem(c->tail, c->tail_len, "[DONE]", 6) || memmem(c->tail, c->tail_len, "message_stop", 12);
    if (!is_complete || c->sequence == 0 || (c->kind->is_stream && c->expected && c->sequence != c->expected)) {
        fail(c, TRUNCATED);
        return;
    }
    finished++;
    finished_in_window += in_window;
    if (c->in_window) record(&duration, now - c->scheduled);
    if (c->keep_alive && options.keepalive) {
        open_exchanges--;
        disarm(&c->timer);
        c->state = IDLE;
        c->previous_idle = NULL;
        c->next_idle = idle_head;
        if (idle_head) idle_head->previous_idle = c;
        else idle_tail = c;
        idle_head = c;
    } else close_conn(c);
    if (options.repeat && !arrivals_over) begin(c, now);
}

/* Read the head; *at is moved behind it. 0: incomplete, all input consumed; 1: complete; -1: not valid. */
static int take_head(struct conn *c, const char **at, const char *end) {
    size_t here = end - *at, room = HEAD_LIMIT - c->head_len, before = c->head_len;
    if (here > room) here = room;
    memcpy(c->head + before, *at, here);
    c->head_len += here;
    c->head[c->head_len] = 0;
    char *blank = memmem(c->head, c->head_len, "\r\n\r\n", 4);
    if (!blank) return c->head_len < HEAD_LIMIT ? 0 : -1;
    *at += blank + 4 - (c->head + before);
    blank[2] = 0;
    c->status = atoi(c->head + 9);
    c->body = body_of(c->head, UNTIL_CLOSE);
    c->keep_alive = c->body.framing != UNTIL_CLOSE && !header_is(c->head, "connection:", "close");
    c->state = BODY;
    return 1;
}

static void on_bytes(struct conn *c, const char *at, size_t length, int64_t now) {
    const char *end = at + length;
    if (c->state == HEAD) {
        int head = take_head(c, &at, end);
        if (head < 0) fail(c, CORRUPT);
        if (head <= 0) return;
        if (c->status != 200) {
            last_status = c->status;
            fail(c, STATUS);
            return;
        }
    }
    for (ssize_t n; (n = next_piece(&c->body, &at, end));)
        if (n < 0 || scan(c, at - n, n, now)) {
            fail(c, CORRUPT);
            return;
        }
    if (c->body.done) finish(c, now);
}

/* --- answers over HTTP/2 */
static void on_stream_status(struct stream *s, int status) {
    struct conn *c = s->owner;
    if (status >= 100 && status < 200) return;
    c->state = BODY;
    if (status == 200) return;
    last_status = status;
    fail(c, status < 0 ? CORRUPT : STATUS);
}

static void on_stream_data(struct stream *s, const char *at, size_t length, int64_t now) {
    struct conn *c = s->owner;
    if (c->state != BODY || scan(c, at, length, now)) fail(c, CORRUPT);
}

static void on_stream_end(struct stream *s, int64_t now) {
    finish(s->owner, now);
}

static void on_stream_broken(struct stream *s, int is_refused) {
    fail(s->owner, is_refused ? REFUSED : TRUNCATED);
}

static void on_ready(struct conn *c, uint32_t ready) {
    static char buffer[262144];
    if (c->state == CONNECTING) {
        int error = 0;
        socklen_t size = sizeof error;
        getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
        if (error) {
            fail(c, REFUSED);
            return;
        }
        c->state = SENDING;
    }
    if (c->state == SENDING && (ready & EPOLLOUT)) send_request(c);
    if (c->state == FREE || !(ready & ~EPOLLOUT)) return;
    ssize_t n = recv(c->fd, buffer, sizeof buffer, 0);
    int64_t now = clock_ns();
    if (n < 0 && errno == EAGAIN) return;
    if (c->state == IDLE) close_conn(c);
    else if (n > 0 && c->state == SENDING) fail(c, CORRUPT); /* an answer before the request was sent */
    else if (n > 0) on_bytes(c, buffer, n, now);
    else if (n == 0 && c->state == BODY && c->body.framing == UNTIL_CLOSE) finish(c, now);
    else fail(c, TRUNCATED);
}

static void on_timer(struct conn *c) {
    char byte;
    if (!c->slow) {
        cancel(c);
        return;
    }
    ssize_t n = recv(c->fd, &byte, 1, MSG_DONTWAIT);
    if (n == 0 || (n < 0 && errno != EAGAIN)) close_conn(c);
    else arm(&c->timer, clock_ns() + options.slow_ms * MILLISECOND);
}

/* --- phases */
static int64_t began, window_opened, window_closed;

static void say(const char *what, int64_t now) {
    printf("%s %ld\n", what, (long)now);
    fflush(stdout);
}

/* Start all exchanges that are due; return the time of the next one. */
static int64_t arrivals(int64_t now) {
    if (arrivals_over) return NEVER;
    if (!options.rate) {
        for (; smooth_started < options.slots; smooth_started++) {
            /* At a spread-out position within its own part of the ramp (multiples of the golden ratio): with starts at
             * equal distances, events of many streams would be due at the same instants. */
            double place = smooth_started + (uint32_t)(smooth_started * 2654435769u) / 4294967296.0;
            int64_t due = began + (int64_t)(options.ramp_ms * MILLISECOND * place / options.slots);
            if (due > now) return due;
            arrive(due);
        }
        return NEVER;
    }
    for (;; smooth_started++) {
        int64_t due = began + (int64_t)(smooth_started * (SECOND / options.rate));
        if (due > now) return due;
        arrive(due);
    }
}

/* Open and close the window; return the time of the next check, or 0 at the end. */
static int64_t phases(int64_t now) {
    int64_t warm = began + (options.ramp_ms + options.warm_ms) * MILLISECOND;
    if (!window_opened) {
        int all_open = options.rate || first_events >= options.slots || now >= warm + options.open_limit_ms * MILLISECOND;
        if (now < warm || !all_open) return now < warm ? warm : now + 5 * MILLISECOND;
        window_opened = now;
        in_window = 1;
        say("window-open", now);
    }
    int64_t close_at = window_opened + options.window_ms * MILLISECOND;
    if (now < close_at) return close_at;
    if (!window_closed) {
        window_closed = now;
        in_window = 0;
        arrivals_over = 1;
        say("window-close", now);
    }
    int64_t end = window_closed + options.drain_ms * MILLISECOND;
    return open_exchanges <= options.slow || now >= end ? 0 : (end < now + 10 * MILLISECOND ? end : now + 10 * MILLISECOND);
}

static void report(void) {
    printf("{\"window_ns\":%ld,\"started\":%ld,\"finished\":%ld,\"events\":%ld,\"last_status\":%d,",
           (long)(window_closed - window_opened), started, finished, events_seen, last_status);
    printf("\"window\":{\"started\":%ld,\"finished\":%ld,\"events\":%ld},\"errors\":{", started_in_window,
           finished_in_window, events_in_window);
    for (int i = 0; i < PROBLEMS; i++) printf("%s\"%s\":%ld", i ? "," : "", problem_names[i], problems[i]);
    printf("},\"cancels\":[");
    for (size_t i = 0; i < cancels_len; i++) printf("%s[%ld,%ld]", i ? "," : "", (long)cancels[i][0], (long)cancels[i][1]);
    printf("],");
    print_histogram("latency", &latency);
    printf(",");
    print_histogram("first_event", &first_event);
    printf(",");
    print_histogram("duration", &duration);
    printf("}\n");
}

/* --- command line */
static void read_options(int argc, char **argv) {
    static char headers[8192];
    struct { const char *name; long *number; const char **text; } known[] = {
        {"--port", &options.port, 0}, {"--path", 0, &options.path}, {"--model", 0, &options.model},
        {"--stream", &options.stream, 0}, {"--body-bytes", &options.body_bytes, 0}, {"--slots", &options.slots, 0},
        {"--repeat", &options.repeat, 0}, {"--keepalive", &options.keepalive, 0}, {"--max-open", &options.max_open, 0},
        {"--ramp-ms", &options.ramp_ms, 0}, {"--warm-ms", &options.warm_ms, 0}, {"--window-ms", &options.window_ms, 0},
        {"--drain-ms", &options.drain_ms, 0}, {"--open-limit-ms", &options.open_limit_ms, 0}, {"--events", &options.events, 0},
        {"--cancel", 0, &options.cancel}, {"--cancel-ms", &options.cancel_ms, 0}, {"--slow", &options.slow, 0},
        {"--slow-ms", &options.slow_ms, 0}, {"--first-id", &options.first_id, 0}, {"--http2", &options.http2, 0},
        {"--mix", 0, &options.mix}, {"--spread", &options.spread, 0}};
    for (int i = 1; i + 1 < argc; i += 2) {
        int found = 0;
        if (strcmp(argv[i], "--rate") == 0) {
            options.rate = atof(argv[i + 1]);
            found = 1;
        } else if (strcmp(argv[i], "--header") == 0) {
            size_t length = strlen(headers);
            snprintf(headers + length, sizeof headers - length, "%s\r\n", argv[i + 1]);
            found = 1;
        }
        for (size_t k = 0; k < sizeof known / sizeof *known; k++)
            if (strcmp(argv[i], known[k].name) == 0) {
                if (known[k].number) *known[k].number = atol(argv[i + 1]);
                else *known[k].text = argv[i + 1];
                found = 1;
            }
        if (!found) {
            fprintf(stderr, "unknown option: %s\n", argv[i]);
            exit(2);
        }
    }
    options.headers = headers;
    if (options.http2 && options.slow) {
        fprintf(stderr, "--slow is for HTTP/1.1 only\n");
        exit(2);
    }
}

int main(int argc, char **argv) {
    read_options(argc, argv);
    raise_file_limit();
    signal(SIGPIPE, SIG_IGN);
    address = loopback(options.port);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    build_requests();
    links = calloc(options.http2 + 1, sizeof *links);
    conns_room = options.rate ? options.max_open : options.slots;
    conns = calloc(conns_room + options.slow, sizeof *conns);
    if (!conns || !links || epoll < 0) die("start");
    for (long i = 0; i < options.http2; i++) link_open(&links[i], &address);
    began = clock_ns();
    for (long i = 0; i < options.slow; i++) {
        conns[conns_room + i].slow = 1;
        begin(&conns[conns_room + i], began);
    }
    struct epoll_event events[512];
    for (;;) {
        int64_t now = clock_ns(), next = phases(now), due = arrivals(now);
        if (!next) break;
        if (due < next) next = due;
        if (heap_size && heap[1]->due < next) next = heap[1]->due;
        int n = wait_events(epoll, events, 512, next);
        for (int i = 0; i < n; i++) {
            struct conn *c = events[i].data.ptr;
            if (options.http2) link_ready(events[i].data.ptr, events[i].events);
            else if (c->state != FREE) on_ready(c, events[i].events);
        }
        for (now = clock_ns(); heap_size && heap[1]->due <= now;) on_timer((struct conn *)heap[1]);
    }
    problems[UNFINISHED] = open_exchanges - options.slow;
    report();
    return 0;
}
