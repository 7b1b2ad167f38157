/* A board of 3 axes, as a program: the main loop that a firmware around edge_frame.h has, with a terminal as its UART.

       cc -O2 -o example_board example_board.c
       ./example_board [--samples N] [--rate HZ] [--boot ID] [--memory FILE] [--reboot-every N] [--axes-only]
                       [--key HEX] [PORT]

   Without PORT it makes a pseudo-terminal and prints the name of its far end, which is the port to connect to. It waits
   to be asked for HELLO, then sends HELLO, N samples (default: no end) at HZ a second (50; 0: as fast as the line takes
   them) and END, and goes on to answer. Each sample is 32 rows of 3 axes and turns between three states, "rest", "walk"
   and "shake"; its label goes with it, of every tenth one later in a frame of its own. --axes-only sends none. --key
   needs -DEDGE_FRAME_AUTH. It ends when the far end hangs up, and prints what it counted, as JSON: made in all boots,
   all else in the last one.

   --memory makes it a board that remembers how many samples it made, in a FILE that stands for its EEPROM: the host
   then knows what is missing around a restart, too. To kill the program is to cut its power; --reboot-every is a
   watchdog that resets it behind so many samples. */
#define _XOPEN_SOURCE 600
#define EDGE_FRAME_IMPLEMENTATION
#include "edge_frame.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define ROWS 32
#define AXES 3

static const char STREAMS[] =
    "{\"0\":{\"channels\":[\"x\",\"y\",\"z\"],\"dtype\":\"int16\",\"label_names\":[\"rest\",\"walk\",\"shake\"],"
    "\"name\":\"motion\",\"rate_hz\":1600.0,\"scale\":0.001,\"shape\":[32,3],\"unit\":\"g\"}}";

typedef struct {
    long samples, rate_hz, boot, reboot_every;
    int axes_only;
    const char *key, *port, *memory;
} options;

static int fail(const char *what) {
    fprintf(stderr, "example_board: %s: %s\n", what, strerror(errno));
    return -1;
}

/* ------------------------------------------------ what a real board has in its place: clock, sensor, lasting memory */

static uint64_t now_us(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000u + (uint64_t)(now.tv_nsec / 1000);
}

static uint32_t noise_state = 1;

static int noise(int width) {
    noise_state = noise_state * 1664525u + 1013904223u;
    return (int)(noise_state >> 16) % (2 * width + 1) - width;
}

/* A triangle between -height and height. */
static int triangle(long at, int period, int height) {
    int place = (int)(at % period);
    return height - 4 * height * (place < period / 2 ? place : period - place) / period;
}

static int32_t state_of(uint32_t seq) { return (int32_t)(seq / 50 % 3); }

static void measure(uint32_t seq, int16_t values[ROWS][AXES]) {
    static const int period[3] = {32, 16, 6}, height[3] = {5, 200, 700};
    int32_t state = state_of(seq);
    int row, axis;
    for (row = 0; row < ROWS; row++)
        for (axis = 0; axis < AXES; axis++)
            values[row][axis] = (int16_t)(triangle((long)seq * ROWS + row + 3 * axis, period[state], height[state]) +
                                          (axis == 2 ? 1000 : 0) + noise(20));
}

/* Lasting memory wears out (EEPROM: 100,000 writes), so it is not written for each sample. It holds a number that the
   board has not gone beyond: when it gets there, it reserves RESERVE more, before it makes the next sample.

   A reset (watchdog, button) finds the rest of this struct as it was, if it lies where start-up code does not clear it
   (.noinit, a backup register): then the count is exact. After a power cut there is only the reserved number, and the
   board takes all of it for made. So up to RESERVE samples a power cut are told to the host, and counted as lost, that
   were never made; one that was made is never forgotten. A count that lags behind would do the opposite: lose up to as
   many in silence, and undo the count of others. Whoever is warned in time (brown-out interrupt, a capacitor) writes
   the exact number, as main does at an orderly end.

   A real one writes two copies in turn, each with a CRC, for a cut while it writes; here rename does that. */
#define RESERVE 1000

static struct {
    const char *path;     /* 0: there is none, and the host is told nothing of the boots before */
    uint32_t boot, total; /* what it holds: the number of this boot; samples made in all boots, or more */
    uint32_t before;      /* made in all boots before this one */
} memory;

static void keep(uint32_t total) {
    char fresh[4096];
    FILE *file;
    memory.total = total;
    if (!memory.path) return;
    snprintf(fresh, sizeof fresh, "%s~", memory.path);
    file = fopen(fresh, "w");
    if (!file || fprintf(file, "%lu %lu\n", (unsigned long)memory.boot, (unsigned long)total) < 0 || fclose(file) ||
        rename(fresh, memory.path)) {
        fail(memory.path);
        memory.path = 0; /* a count that may lag behind is worse than none */
    }
}

/* The boot and what was made before it; 0 if there is a file that says neither. */
static int recall(const options *wanted) {
    unsigned long boot = 0, total = 0;
    FILE *file = wanted->memory ? fopen(wanted->memory, "r") : 0;
    int known = file && fscanf(file, "%lu %lu", &boot, &total) == 2;
    if (file) fclose(file);
    if (file && !known) return 0;
    memory.path = wanted->memory;
    memory.boot = known ? (uint32_t)((boot + 1) % 65536) : (uint32_t)wanted->boot;
    memory.before = (uint32_t)total;
    keep(memory.before); /* no boot comes twice */
    return 1;
}

/* -------------------------------------------------------------------------------------------------------- the board */

static uint8_t piece[512]; /* what the line has not taken yet */
static size_t piece_size, piece_done;
static uint32_t owed; /* the label of which sample is still to be sent, plus one */

/* 1 if no label is owed any more. */
static int pay_label(ef_link *link) {
    if (owed && ef_label(link, 0, owed - 1, now_us(), state_of(owed - 1), 0, 1.0f)) owed = 0;
    return !owed;
}

/* Samples made in all boots. */
static uint32_t made(const ef_link *link) { return memory.before + link->next_seq[0]; }

static void say_where(ef_link *link, int times) {
    for (; times > 0; times--) {
        ef_next(link, 0, now_us());
        if (memory.path) ef_before(link, 0, memory.before, now_us());
    }
}

/* HELLO, and where we are, again and again: without it nobody would know of a first sample that is lost. */
static int introduce(ef_link *link) {
    if (!ef_hello(link, now_us())) return 0;
    say_where(link, 3);
    return 1;
}

static void take_sample(ef_link *link, const options *wanted) {
    static const uint16_t shape[2] = {ROWS, AXES};
    int16_t values[ROWS][AXES];
    uint32_t seq = link->next_seq[0];
    int later = seq % 10 == 9, sent;
    if (made(link) == memory.total) keep(made(link) + RESERVE);
    measure(seq, values);
    sent = ef_sample(link, 0, now_us(), EF_I16, 2, shape, values,
                     wanted->axes_only || later ? EF_NO_LABEL : state_of(seq));
    if (sent && later && !wanted->axes_only) owed = seq + 1;
    if (seq % 1000 == 999) ef_hello(link, now_us()); /* who joins late learns the schema, too */
    if (seq % 100 == 99) say_where(link, 1);
}

/* Give the line what it takes at once. 0: it is gone. */
static int flush(ef_link *link, int line) {
    for (;;) {
        ssize_t n;
        if (piece_done == piece_size) {
            piece_size = ef_take(link, piece, sizeof piece);
            piece_done = 0;
            if (!piece_size) return 1;
        }
        n = write(line, piece + piece_done, piece_size - piece_done);
        if (n < 0) return errno == EAGAIN || errno == EINTR;
        piece_done += (size_t)n;
    }
}

/* Hear what came. 0: the line is gone. */
static int hear(ef_link *link, int line) {
    uint8_t piece[256];
    ssize_t n = read(line, piece, sizeof piece), i;
    if (n <= 0) return n < 0 && (errno == EAGAIN || errno == EINTR);
    for (i = 0; i < n; i++) ef_receive(link, piece[i], now_us(), 0);
    return 1;
}

static int use_key(ef_link *link, const char *hex) {
#ifdef EDGE_FRAME_AUTH
    uint8_t key[64];
    size_t size = strlen(hex) / 2, i;
    unsigned byte;
    for (i = 0; i < size && i < sizeof key && sscanf(hex + 2 * i, "%2x", &byte) == 1; i++) key[i] = (uint8_t)byte;
    return i == size && ef_use_key(link, key, size);
#else
    (void)link;
    (void)hex;
    return 0;
#endif
}

/* What each boot begins with; 0 if the key is none. */
static int start(ef_link *link, const options *wanted) {
    static const ef_link nothing;
    static uint8_t fifo[8192];
    *link = nothing;
    ef_begin(link, "example board", "1.0", STREAMS, (uint16_t)memory.boot, fifo, sizeof fifo);
    return !wanted->key || use_key(link, wanted->key);
}

/* A reset: what was in the FIFO and in the transmitter is gone, in the middle of a frame or not. */
static void restart(ef_link *link, const options *wanted) {
    memory.before = made(link);
    memory.boot = (memory.boot + 1) % 65536;
    keep(memory.total);
    piece_size = piece_done = owed = 0;
    start(link, wanted);
    introduce(link);
}

static void run(ef_link *link, int line, int *spare, const options *wanted) {
    const uint32_t last = memory.before + (uint32_t)wanted->samples;
    uint64_t due = 0, second = 0, end_due = 0, period = wanted->rate_hz ? 1000000u / (uint64_t)wanted->rate_hz : 0;
    int running = 0;
    struct pollfd on_line;
    on_line.fd = line;
    for (;;) {
        uint64_t now = now_us();
        int working = running && made(link) != last;
        on_line.events = POLLIN;
        if (link->head != link->tail) on_line.events |= POLLOUT;
        poll(&on_line, 1, working ? (now < due ? (int)((due - now) / 1000) : 0) : 100);
        if ((on_line.revents & POLLIN && !hear(link, line)) || !flush(link, line)) return;
        if (on_line.revents & (POLLHUP | POLLERR) && !(on_line.revents & POLLIN)) return;
        now = now_us();
        if (link->asked && introduce(link) && !running) {
            running = 1;
            due = second = now;
            if (*spare >= 0) close(*spare); /* from here on a hang-up of the far end is seen */
            *spare = -1;
        }
        if (!running) continue;
        if (working && now >= due) {
            /* Without a clock to follow there is no hurry: wait for the line instead of dropping. */
            if (wanted->reboot_every && link->next_seq[0] == (uint32_t)wanted->reboot_every) restart(link, wanted);
            if (pay_label(link) && (period || link->head == link->tail)) take_sample(link, wanted);
            due += period;
        }
        if (made(link) == last && pay_label(link) && now >= end_due) {
            say_where(link, 3);
            ef_end(link, 0, now);
            end_due = now + 200000; /* until the host hangs up: it may not have heard */
        }
        if (now >= second) {
            ef_stats(link, now);
            second += 1000000;
        }
    }
}

/* -------------------------------------------------------------------------------------------- a terminal for a UART */

static int make_raw(int line) {
    struct termios how;
    if (tcgetattr(line, &how)) return fail("not a terminal");
    how.c_iflag = how.c_oflag = how.c_lflag = 0;
    how.c_cflag = (how.c_cflag & ~(tcflag_t)(CSIZE | PARENB)) | CS8 | CREAD | CLOCAL;
    how.c_cc[VMIN] = 1;
    how.c_cc[VTIME] = 0;
    cfsetospeed(&how, B115200);
    cfsetispeed(&how, B115200);
    return tcsetattr(line, TCSANOW, &how) ? fail("cannot set the terminal") : line;
}

/* The port, or the near end of a new pseudo-terminal; spare holds its far end open until somebody came. */
static int open_line(const char *port, int *spare) {
    int line = port ? open(port, O_RDWR | O_NOCTTY | O_NONBLOCK) : posix_openpt(O_RDWR | O_NOCTTY);
    if (line < 0) return fail(port ? port : "no pseudo-terminal");
    if (port) return make_raw(line);
    if (grantpt(line) || unlockpt(line)) return fail("no pseudo-terminal");
    *spare = open(ptsname(line), O_RDWR | O_NOCTTY);
    if (*spare < 0 || make_raw(*spare) < 0) return fail("no pseudo-terminal");
    fcntl(line, F_SETFL, O_NONBLOCK);
    printf("%s\n", ptsname(line));
    fflush(stdout);
    return line;
}

static int parse(int count, char **words, options *wanted) {
    int i;
    for (i = 1; i < count; i++) {
        const char *word = words[i], *value = i + 1 < count ? words[i + 1] : "";
        if (!strcmp(word, "--axes-only"))
            wanted->axes_only = 1;
        else if (!strcmp(word, "--samples"))
            wanted->samples = atol(value), i++;
        else if (!strcmp(word, "--rate"))
            wanted->rate_hz = atol(value), i++;
        else if (!strcmp(word, "--boot"))
            wanted->boot = atol(value), i++;
        else if (!strcmp(word, "--memory"))
            wanted->memory = value, i++;
        else if (!strcmp(word, "--reboot-every"))
            wanted->reboot_every = atol(value), i++;
        else if (!strcmp(word, "--key"))
            wanted->key = value, i++;
        else if (word[0] == '-' || wanted->port)
            return 0;
        else
            wanted->port = word;
    }
    return wanted->samples > 0 && wanted->rate_hz >= 0 && wanted->boot >= 0 && wanted->reboot_every >= 0;
}

int main(int count, char **words) {
    static ef_link link;
    options wanted = {2147483647L, 50, 1, 0, 0, 0, 0, 0};
    int spare = -1, line;
    wanted.boot = (long)(time(0) % 65536); /* another one at every start; with a key, count instead: --memory does */
    if (!parse(count, words, &wanted)) {
        fprintf(stderr, "example_board [--samples N] [--rate HZ] [--boot ID] [--memory FILE] [--reboot-every N] "
                        "[--axes-only] [--key HEX] [PORT]\n");
        return 2;
    }
    if (!recall(&wanted)) {
        fprintf(stderr, "example_board: --memory %s: not the two numbers of a board's memory\n", wanted.memory);
        return 1;
    }
    if (!start(&link, &wanted)) {
        fprintf(stderr, "example_board: --key: 16 to 64 bytes in hex, in a program built with -DEDGE_FRAME_AUTH\n");
        return 2;
    }
    line = open_line(wanted.port, &spare);
    if (line < 0) return 1;
    run(&link, line, &spare, &wanted);
    keep(made(&link)); /* an orderly end: the number is exact */
    printf("{\"made\": %lu, \"generated\": %lu, \"dropped\": %lu, \"sent\": %lu, \"received\": %lu, \"crc\": %lu, "
           "\"safe\": %lu, \"agreed\": %s}\n",
           (unsigned long)made(&link), (unsigned long)link.generated, (unsigned long)link.dropped,
           (unsigned long)link.sent, (unsigned long)link.received, (unsigned long)link.crc,
           (unsigned long)link.safe[0], link.seed ? "true" : "false");
    close(line);
    return 0;
}
