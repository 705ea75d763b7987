/* The fake upstream: answers every POST with a stream of chat completion chunks, or with one JSON document.
 *
 *   fake_upstream [--cert FILE --key FILE]   prints `port N`, then reads commands from standard input, one a line:
 *   set a|b name=value ...                   how requests are answered from now on; `b` is for exchanges from 5e9 on
 *       stream=0|1   events=N        interval=NS (0: flood)   first=NS (delay of the first event)
 *       duration=NS (of a flood)     burst=N (events per write of a flood)   bytes=N (text of a JSON answer)
 *   end                                      end every stream that is open now correctly, at its next event
 *   reset                                    set counts and closes back to zero
 *   stats                                    print counts as JSON: requests, events, late (ns)
 *   closes                                   print [[exchange, ns], ...]: when the peer closed before the answer's end
 *
 * Requests whose path ends in /messages are answered in Anthropic's dialect, all others in OpenAI's. The number of an
 * exchange is `bench-id:<digits>:` in the request's body. If `events=<digits>:` follows, the answer is a stream of as many
 * events, or one JSON document for 0, whatever the profile says. The program ends when standard input ends. */
#include "wire.h"
#ifdef WITH_TLS
#include <openssl/err.h>
#include <openssl/ssl.h>
#else
typedef void SSL;
#endif

#define ID_PREFIX "bench-id:"
#define EVENTS_PREFIX "events="
#define SECOND_PROFILE_FROM 5000000000L
#define KEPT_BODY 4096
#define FLOOD_TURN 65536 /* bytes that one stream of a flood sends before others have their turn */

struct profile {
    long stream, events, interval, first, duration, burst, bytes;
};
enum state { HANDSHAKE, HEAD, BODY, ANSWERING };
struct conn {
    struct timer timer; /* first */
    int fd, blocked, keep_alive, messages, watched;
    enum state state;
    SSL *ssl;
    char *in, *out;
    size_t in_len, in_room, out_len, out_at, out_room, kept;
    struct body body;
    char start_of_body[KEPT_BODY + 1];
    struct profile profile;
    long exchange, sequence;
    int64_t started;
};

static struct profile profiles[2] = {{1, 10, 20 * MILLISECOND, 0, SECOND, 16, 200}, {1, 10, 20 * MILLISECOND, 0, SECOND, 16, 200}};
static int epoll, listener;
static struct histogram late;
static long requests, events_sent;
static int64_t ended_at; /* streams that were started earlier end at their next event */
static int64_t (*closes)[2];
static size_t closes_len, closes_room;
#ifdef WITH_TLS
static SSL_CTX *tls;
#endif

static const char *STREAM_HEAD = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
                                 "cache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n";
static const char *CHUNK = "data: {\"id\":\"chatcmpl-benchmark\",\"object\":\"chat.completion.chunk\",\"created\":1790000000,"
                           "\"model\":\"gpt-4o\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"@%ld %ld %ld~\"},"
                           "\"finish_reason\":null}]}\n\n";
static const char *CHUNKS_END = "data: {\"id\":\"chatcmpl-benchmark\",\"object\":\"chat.completion.chunk\",\"created\":1790000000,"
    "\"model\":\"gpt-4o\",\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n"
    "data: {\"id\":\"chatcmpl-benchmark\",\"object\":\"chat.completion.chunk\",\"created\":1790000000,\"model\":\"gpt-4o\","
    "\"choices\":[],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":12,\"total_tokens\":21}}\n\ndata: [DONE]\n\n";
static const char *DELTAS_START =
    "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"id\":\"msg_benchmark\",\"type\":\"message\","
    "\"role\":\"assistant\",\"content\":[],\"model\":\"claude-3-haiku-20240307\",\"stop_reason\":null,"
    "\"stop_sequence\":null,\"usage\":{\"input_tokens\":9,\"output_tokens\":1}}}\n\nevent: content_block_start\n"
    "data: {\"type\":\"content_block_start\",\"index\":0,\"content_block\":{\"type\":\"text\",\"text\":\"\"}}\n\n";
static const char *DELTA = "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":"
                           "{\"type\":\"text_delta\",\"text\":\"@%ld %ld %ld~ and some words to fill it up\"}}\n\n";
static const char *DELTAS_END =
    "event: content_block_stop\ndata: {\"type\":\"content_block_stop\",\"index\":0}\n\nevent: message_delta\n"
    "data: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\",\"stop_sequence\":null},"
    "\"usage\":{\"output_tokens\":12}}\n\nevent: message_stop\ndata: {\"type\":\"message_stop\"}\n\n";

/* --- input and output, with or without TLS: return the count, 0 at the end, -1 with EAGAIN or another error */
static ssize_t take(struct conn *c, char *into, size_t room) {
#ifdef WITH_TLS
    if (c->ssl) {
        ERR_clear_error();
        int n = SSL_read(c->ssl, into, room);
        if (n > 0) return n;
        int why = SSL_get_error(c->ssl, n);
        errno = EAGAIN;
        return why == SSL_ERROR_WANT_READ || why == SSL_ERROR_WANT_WRITE ? -1 : 0;
    }
#endif
    return recv(c->fd, into, room, 0);
}

static ssize_t put(struct conn *c, const char *from, size_t length) {
#ifdef WITH_TLS
    if (c->ssl) {
        ERR_clear_error();
        int n = SSL_write(c->ssl, from, length);
        if (n > 0) return n;
        int why = SSL_get_error(c->ssl, n);
        errno = why == SSL_ERROR_WANT_READ || why == SSL_ERROR_WANT_WRITE ? EAGAIN : EPIPE;
        return -1;
    }
#endif
    return send(c->fd, from, length, MSG_NOSIGNAL);
}

static void end_conn(struct conn *c, int64_t now) {
    if (c->state == ANSWERING) {
        if (closes_len == closes_room) closes = grow(closes, (closes_room = 2 * closes_room + 64) * sizeof *closes);
        closes[closes_len][0] = c->exchange;
        closes[closes_len++][1] = now;
    }
    disarm(&c->timer);
#ifdef WITH_TLS
    if (c->ssl) SSL_free(c->ssl);
#endif
    close(c->fd);
    c->fd = -1; /* freed after this turn: a later event of the same turn may still point to it */
}

static void append(struct conn *c, const char *bytes, size_t length) {
    if (c->out_len + length > c->out_room) c->out = grow(c->out, c->out_room = 2 * (c->out_len + length));
    memcpy(c->out + c->out_len, bytes, length);
    c->out_len += length;
}

static void append_chunk(struct conn *c, const char *bytes, size_t length) {
    char size[20];
    append(c, size, sprintf(size, "%zx\r\n", length));
    append(c, bytes, length);
    append(c, "\r\n", 2);
}

/* Send pending output: 0 if all was sent, 1 if the socket is full, -1 if the peer has closed. */
static int flush(struct conn *c) {
    while (c->out_at < c->out_len) {
        ssize_t n = put(c, c->out + c->out_at, c->out_len - c->out_at);
        if (n > 0) c->out_at += n;
        else if (errno == EAGAIN) break;
        else return -1;
    }
    int blocked = c->out_at < c->out_len;
    if (!blocked) c->out_at = c->out_len = 0;
    if (blocked != c->watched) watch(epoll, EPOLL_CTL_MOD, c->fd, EPOLLIN | EPOLLRDHUP | (blocked ? EPOLLOUT : 0), c);
    c->watched = c->blocked = blocked;
    return blocked;
}

static void append_event(struct conn *c, int64_t stamp) {
    char event[512];
    if (c->sequence == 0) {
        append(c, STREAM_HEAD, strlen(STREAM_HEAD));
        if (c->messages) append_chunk(c, DELTAS_START, strlen(DELTAS_START));
    }
    int length = sprintf(event, c->messages ? DELTA : CHUNK, (long)stamp, c->exchange, c->sequence++);
    append_chunk(c, event, length);
    events_sent++;
}

static void append_json(struct conn *c) {
    const char *before = c->messages
        ? "{\"id\":\"msg_benchmark\",\"type\":\"message\",\"role\":\"assistant\",\"model\":\"claude-3-haiku-20240307\","
          "\"stop_reason\":\"end_turn\",\"stop_sequence\":null,\"usage\":{\"input_tokens\":9,\"output_tokens\":12},"
          "\"content\":[{\"type\":\"text\",\"text\":\""
        : "{\"id\":\"chatcmpl-benchmark\",\"object\":\"chat.completion\",\"created\":1790000000,\"model\":\"gpt-4o\","
          "\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":12,\"total_tokens\":21},"
          "\"choices\":[{\"index\":0,\"finish_reason\":\"stop\",\"message\":{\"role\":\"assistant\",\"content\":\"";
    const char *after = c->messages ? "\"}]}" : "\"}}]}";
    char head[160], text[MARK_LIMIT];
    int mark = sprintf(text, "@%ld %ld %ld~", (long)clock_ns(), c->exchange, c->sequence++);
    size_t total = strlen(before) + mark + c->profile.bytes + strlen(after);
    append(c, head, sprintf(head, "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %zu\r\n\r\n", total));
    append(c, before, strlen(before));
    append(c, text, mark);
    for (long i = 0; i < c->profile.bytes; i++) append(c, "w", 1);
    append(c, after, strlen(after));
    events_sent++;
}

static int parse_requests(struct conn *c);

/* End the answer; wait for the next request, or parse it if it has been received already (pipelining). */
static int finish(struct conn *c) {
    const char *end = c->messages ? DELTAS_END : CHUNKS_END;
    if (c->profile.stream) {
        append_chunk(c, end, strlen(end));
        append(c, "0\r\n\r\n", 5);
    }
    c->timer.due = NEVER;
    c->state = HEAD;
    if (flush(c) < 0 || (!c->keep_alive && !c->blocked)) return -1;
    return parse_requests(c);
}

static int flood(struct conn *c, int64_t now) {
    for (size_t sent = 0; sent < FLOOD_TURN;) {
        if (now - c->started >= c->profile.duration || c->started < ended_at) return finish(c);
        for (int i = 0; i < c->profile.burst; i++) append_event(c, now);
        sent += c->out_len;
        int blocked = flush(c);
        if (blocked) return blocked < 0 ? -1 : 0; /* continued by on_writable */
        now = clock_ns();
    }
    arm(&c->timer, now);
    return 0;
}

/* Send what is due; -1 if the peer has closed. An event that waited because the peer did not read carries the time at
 * which it was due, so that the wait counts as latency. Any other event carries the time of sending: this process's own
 * lateness must not count. */
static int answer(struct conn *c, int was_blocked) {
    struct profile *p = &c->profile;
    int64_t now = clock_ns();
    disarm(&c->timer);
    if (!p->stream) {
        append_json(c);
        return finish(c);
    }
    if (p->interval == 0) return flood(c, now);
    int64_t due = c->started + p->first + c->sequence * p->interval;
    int is_over = c->started < ended_at && due <= now;
    for (; due <= now && c->sequence < p->events; due += p->interval) {
        if (was_blocked) append_event(c, due);
        else {
            now = clock_ns();
            record(&late, now - due);
            append_event(c, now);
        }
    }
    if (c->sequence >= p->events || is_over) return finish(c);
    int blocked = flush(c);
    if (!blocked) arm(&c->timer, due);
    return blocked < 0 ? -1 : 0;
}

static int start_answer(struct conn *c) {
    c->start_of_body[c->kept] = 0;
    char *id = strstr(c->start_of_body, ID_PREFIX);
    c->exchange = id ? atol(id + strlen(ID_PREFIX)) : 0;
    c->profile = profiles[c->exchange >= SECOND_PROFILE_FROM];
    char *after = id ? strchr(id + strlen(ID_PREFIX), ':') : NULL;
    if (after && strncmp(after + 1, EVENTS_PREFIX, strlen(EVENTS_PREFIX)) == 0) {
        c->profile.events = atol(after + 1 + strlen(EVENTS_PREFIX));
        c->profile.stream = c->profile.events > 0;
    }
    c->state = ANSWERING;
    c->sequence = 0;
    c->started = clock_ns();
    requests++;
    if (c->profile.first == 0) return answer(c, 0);
    arm(&c->timer, c->started + c->profile.first);
    return 0;
}

static void drop_input(struct conn *c, size_t count) {
    c->in_len -= count;
    memmove(c->in, c->in + count, c->in_len);
}

/* Parse the input received so far; -1 if it is not HTTP/1.1 or the peer has closed. */
static int parse_requests(struct conn *c) {
    if (c->state == HEAD) {
        char *end = c->in_len ? memmem(c->in, c->in_len, "\r\n\r\n", 4) : NULL;
        if (!end) return c->in_len < HEAD_LIMIT ? 0 : -1;
        end[2] = 0;
        char *path = strchr(c->in, ' '), *path_end = path ? strchr(path + 1, ' ') : NULL;
        if (!path_end) return -1;
        c->messages = path_end - path > 9 && memcmp(path_end - 9, "/messages", 9) == 0;
        c->keep_alive = !header_is(c->in, "connection:", "close");
        c->body = body_of(c->in, NO_BODY);
        c->kept = 0;
        c->state = BODY;
        drop_input(c, end + 4 - c->in);
    }
    if (c->state == BODY) {
        const char *at = c->in, *end = c->in + c->in_len;
        for (ssize_t n; (n = next_piece(&c->body, &at, end));) {
            if (n < 0) return -1;
            size_t kept = KEPT_BODY - c->kept < (size_t)n ? KEPT_BODY - c->kept : (size_t)n;
            memcpy(c->start_of_body + c->kept, at - n, kept);
            c->kept += kept;
        }
        drop_input(c, at - c->in);
        if (c->body.done) return start_answer(c);
    }
    return 0;
}

static int on_readable(struct conn *c) {
#ifdef WITH_TLS
    if (c->state == HANDSHAKE) {
        ERR_clear_error();
        int done = SSL_accept(c->ssl), why = SSL_get_error(c->ssl, done);
        if (done != 1) return why == SSL_ERROR_WANT_READ || why == SSL_ERROR_WANT_WRITE ? 0 : -1;
        c->state = HEAD;
    }
#endif
    for (;;) {
        if (c->in_len + 65536 > c->in_room) c->in = grow(c->in, c->in_room = c->in_len + 131072);
        ssize_t n = take(c, c->in + c->in_len, 65536);
        if (n == 0 || (n < 0 && errno != EAGAIN)) return -1;
        if (n < 0) return 0;
        c->in_len += n;
        if (c->state != ANSWERING && parse_requests(c)) return -1;
    }
}

static int on_writable(struct conn *c) {
    int blocked = flush(c);
    if (blocked) return blocked < 0 ? -1 : 0;
    return c->state == ANSWERING ? answer(c, 1) : 0;
}

static void accept_all(void) {
    for (int fd; (fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0;) {
        struct conn *c = calloc(1, sizeof *c);
        if (!c) die("calloc");
        c->fd = fd;
        c->state = HEAD;
        set_nodelay(fd);
#ifdef WITH_TLS
        if (tls) {
            c->ssl = SSL_new(tls);
            SSL_set_fd(c->ssl, fd);
            c->state = HANDSHAKE;
        }
#endif
        watch(epoll, EPOLL_CTL_ADD, fd, EPOLLIN | EPOLLRDHUP, c);
    }
}

/* --- control */
static void set_profile(char *words) {
    char *word = strtok(words, " ");
    struct profile *p = &profiles[word && *word == 'b'];
    static const char *names[] = {"stream", "events", "interval", "first", "duration", "burst", "bytes"};
    while ((word = strtok(NULL, " "))) {
        char *equals = strchr(word, '=');
        for (int i = 0; equals && i < 7; i++)
            if (strncmp(word, names[i], equals - word) == 0 && strlen(names[i]) == (size_t)(equals - word))
                ((long *)p)[i] = atol(equals + 1);
    }
}

static void obey(char *line) {
    if (strncmp(line, "set ", 4) == 0) {
        set_profile(line + 4);
        printf("ok\n");
    } else if (strcmp(line, "end") == 0) {
        ended_at = clock_ns();
        printf("ok\n");
    } else if (strcmp(line, "reset") == 0) {
        requests = events_sent = closes_len = 0;
        memset(&late, 0, sizeof late);
        printf("ok\n");
    } else if (strcmp(line, "stats") == 0) {
        printf("{\"requests\":%ld,\"events\":%ld,", requests, events_sent);
        print_histogram("late", &late);
        printf("}\n");
    } else if (strcmp(line, "closes") == 0) {
        printf("[");
        for (size_t i = 0; i < closes_len; i++)
            printf("%s[%ld,%ld]", i ? "," : "", (long)closes[i][0], (long)closes[i][1]);
        printf("]\n");
    } else printf("unknown command\n");
    fflush(stdout);
}

static void read_commands(void) {
    static char buffer[4096];
    static size_t length;
    ssize_t n = read(0, buffer + length, sizeof buffer - length - 1);
    if (n <= 0) exit(0);
    length += n;
    for (char *end; (end = memchr(buffer, '\n', length));) {
        *end = 0;
        obey(buffer);
        length -= end + 1 - buffer;
        memmove(buffer, end + 1, length);
    }
    if (length == sizeof buffer - 1) exit(2);
}

static void start(const char *cert, const char *key) {
    if (cert) {
#ifdef WITH_TLS
        tls = SSL_CTX_new(TLS_server_method());
        SSL_CTX_set_mode(tls, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
        if (SSL_CTX_use_certificate_chain_file(tls, cert) != 1 || SSL_CTX_use_PrivateKey_file(tls, key, SSL_FILETYPE_PEM) != 1)
            die("the certificate or its key");
#else
        (void)key;
        die("built without TLS");
#endif
    }
    raise_file_limit();
    signal(SIGPIPE, SIG_IGN);
    struct sockaddr_in address = loopback(0);
    socklen_t length = sizeof address;
    listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (bind(listener, (struct sockaddr *)&address, length) || listen(listener, 4096)) die("listen");
    getsockname(listener, (struct sockaddr *)&address, &length);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    watch(epoll, EPOLL_CTL_ADD, listener, EPOLLIN, &listener);
    watch(epoll, EPOLL_CTL_ADD, 0, EPOLLIN, &epoll);
    printf("port %d\n", ntohs(address.sin_port));
    fflush(stdout);
}

int main(int argc, char **argv) {
    const char *cert = NULL, *key = NULL;
    for (int i = 1; i + 1 < argc; i += 2) *(strcmp(argv[i], "--cert") ? &key : &cert) = argv[i + 1];
    start(cert, key);
    struct epoll_event events[512];
    struct conn *ended[1024];
    for (;;) {
        int n = wait_events(epoll, events, 512, heap_size ? heap[1]->due : NEVER), ended_len = 0;
        int64_t now = clock_ns();
        for (int i = 0; i < n; i++) {
            struct conn *c = events[i].data.ptr;
            if ((void *)c == &listener) accept_all();
            else if ((void *)c == &epoll) read_commands();
            else if (((events[i].events & ~EPOLLOUT) && on_readable(c)) || ((events[i].events & EPOLLOUT) && on_writable(c))) {
                end_conn(c, now);
                ended[ended_len++] = c;
            }
        }
        now = clock_ns();
        for (int turn = 0; turn < 512 && heap_size && heap[1]->due <= now; turn++) {
            struct conn *c = (struct conn *)heap[1];
            if (answer(c, 0)) {
                end_conn(c, now);
                ended[ended_len++] = c;
            }
        }
        for (int i = 0; i < ended_len; i++) {
            free(ended[i]->in);
            free(ended[i]->out);
            free(ended[i]);
        }
    }
}
