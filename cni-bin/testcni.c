/* testcni: the CNI plugin. It hands each call of the runtime to the agent of this node and prints its answer.
 *
 * CNI specification 1.1: the environment and stdin are the call; stdout has the result and nothing else.
 * An ADD waits for an agent that is being restarted; a DEL that finds no agent is journaled and succeeds.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "json.h"

#ifndef VERSION
#define VERSION "unknown"
#endif
#define NEWEST "1.1.0"
#define STDIN_LIMIT (1 << 20)
#define ANSWER_LIMIT (16 << 20)
#define RETRY_MS 25
#define ANSWER_S 60 /* the agent lets an ADD wait for its node and for an address to cool */
#define DEL_ANSWER_S 30
#define LONGEST_WAIT 300

enum code { ENVIRONMENT = 4, IO_FAILURE = 5, DECODING = 6, CONFIG = 7, TRY_AGAIN = 11, NOT_AVAILABLE = 50 };

static const char *const versions[] = {"0.3.0", "0.3.1", "0.4.0", "1.0.0", NEWEST, NULL};
static const char *const commands[] = {"ADD", "DEL", "CHECK", "GC", "STATUS", NULL};

struct call {
	const char *command;
	char version[16]; /* in which errors are told */
	char socket[sizeof((struct sockaddr_un *)0)->sun_path];
	char state[PATH_MAX / 2];
	double wait;	      /* seconds that an ADD waits for an agent */
	const char *wrong;    /* the name of a member with a wrong value ... */
	struct slice value;   /* ... that value ... */
	const char *allowed;  /* ... and what it might be */
	int netns;	      /* descriptor, or -1 */
	const char *no_netns; /* why it is -1 */
};

enum outcome { ANSWERED, ABSENT, CUT_OFF, LATE, REFUSED };

static int64_t now_ms(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * INT64_C(1000) + t.tv_nsec / 1000000;
}

static const char *const *find(const char *const *list, const char *text)
{
	while (*list && strcmp(*list, text))
		list++;
	return *list ? list : NULL;
}

static const char *environment(const char *name)
{
	const char *value = getenv(name);
	return value ? value : "";
}

static bool write_all(int fd, const char *data, size_t size)
{
	while (size) {
		ssize_t n = write(fd, data, size);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return false;
		data += n;
		size -= (size_t)n;
	}
	return true;
}

/* Read until the end; false with errno, EFBIG when there is more than `limit`. */
static bool read_all(int fd, struct buffer *b, size_t limit)
{
	char chunk[1 << 14];
	for (;;) {
		ssize_t n = read(fd, chunk, sizeof chunk);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n == 0;
		if (b->size + (size_t)n > limit) {
			errno = EFBIG;
			return false;
		}
		if (!put_bytes(b, chunk, (size_t)n)) {
			errno = ENOMEM;
			return false;
		}
	}
}

static void put_member(struct buffer *b, const char *key, const char *value)
{
	put(b, "\"");
	put(b, key);
	put(b, "\":");
	put_string(b, value, strlen(value));
}

/* Print an error as the specification has it; returns the exit code. */
static int fail(const char *version, enum code code, const char *details, const char *format, ...)
{
	char msg[2048], number[24];
	struct buffer out = {0};
	va_list args;

	va_start(args, format);
	vsnprintf(msg, sizeof msg, format, args);
	va_end(args);
	snprintf(number, sizeof number, ",\"code\":%d,", (int)code);
	put(&out, "{");
	put_member(&out, "cniVersion", version);
	put(&out, number);
	put_member(&out, "msg", msg);
	put(&out, ",");
	put_member(&out, "details", details);
	put(&out, "}\n");
	bool written = !out.failed && write_all(STDOUT_FILENO, out.data, out.size);
	free(out.data);
	return written ? (int)code : IO_FAILURE;
}

static int print_versions(const char *asked)
{
	struct buffer out = {0};
	put(&out, "{");
	put_member(&out, "cniVersion", asked);
	put(&out, ",\"supportedVersions\":[");
	for (const char *const *v = versions; *v; v++) {
		put(&out, v == versions ? "" : ",");
		put_string(&out, *v, strlen(*v));
	}
	put(&out, "]}\n");
	bool written = !out.failed && write_all(STDOUT_FILENO, out.data, out.size);
	free(out.data);
	return written ? 0 : IO_FAILURE;
}

static void reject(struct call *call, const char *name, struct slice value, const char *allowed)
{
	call->wrong = name;
	call->value = value;
	call->allowed = allowed;
}

/* Take what the plugin itself needs of the netconf; the rest is the agent's. */
static void take_member(void *context, struct slice key, struct slice value)
{
	struct call *call = context;
	if (is(key, "cniVersion")) {
		char version[sizeof call->version];
		if (plain_string(value, version, sizeof version) && find(versions, version))
			memcpy(call->version, version, sizeof version);
	} else if (is(key, "socket")) {
		if (!plain_string(value, call->socket, sizeof call->socket) || *call->socket != '/')
			reject(call, "socket", value, "an absolute path of at most 107 bytes");
	} else if (is(key, "stateDir")) {
		if (!plain_string(value, call->state, sizeof call->state) || *call->state != '/')
			reject(call, "stateDir", value, "an absolute path");
	} else if (is(key, "agentWait")) {
		if (!number(value, &call->wait) || !(call->wait >= 0 && call->wait <= LONGEST_WAIT))
			reject(call, "agentWait", value, "a number of seconds from 0 to 300");
	}
}

static void open_netns(struct call *call)
{
	const char *path = environment("CNI_NETNS");
	call->no_netns = "";
	call->netns = -1;
	if (!*path)
		return;
	call->netns = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	if (call->netns < 0)
		call->no_netns = strerror(errno);
}

static void put_request(struct buffer *b, const struct call *call, const struct buffer *conf)
{
	static const char *const names[][2] = {
	    {"containerID", "CNI_CONTAINERID"}, {"netns", "CNI_NETNS"}, {"ifname", "CNI_IFNAME"},
	    {"args", "CNI_ARGS"},		{"path", "CNI_PATH"},
	};
	put(b, "{\"protocol\":1,");
	put_member(b, "command", call->command);
	for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
		put(b, ",");
		put_member(b, names[i][0], environment(names[i][1]));
	}
	put(b, ",");
	put_member(b, "netnsError", call->no_netns);
	put(b, ",\"config\":");
	put_string(b, conf->data, conf->size);
	put(b, "}");
}

/* Send the first bytes together with the descriptor of the pod's namespace. */
static ssize_t send_first(int fd, const struct buffer *request, int netns)
{
	union {
		char room[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control = {{0}};
	struct iovec bytes = {request->data, request->size};
	struct msghdr message = {.msg_iov = &bytes, .msg_iovlen = 1};
	if (netns >= 0) {
		message.msg_control = control.room;
		message.msg_controllen = sizeof control.room;
		struct cmsghdr *header = CMSG_FIRSTHDR(&message);
		header->cmsg_level = SOL_SOCKET;
		header->cmsg_type = SCM_RIGHTS;
		header->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(header), &netns, sizeof netns);
	}
	return sendmsg(fd, &message, 0);
}

/* One attempt: the agent's answer, or why there is none (with errno). */
static enum outcome ask(const struct call *call, const struct buffer *request, int answer_s, struct buffer *answer)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	struct timeval patience = {.tv_sec = answer_s};
	enum outcome outcome = CUT_OFF;
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return REFUSED;
	memcpy(address.sun_path, call->socket, sizeof address.sun_path);
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
	answer->size = 0;
	if (connect(fd, (struct sockaddr *)&address, sizeof address)) {
		bool away = errno == ENOENT || errno == ECONNREFUSED || errno == EAGAIN || errno == EINTR;
		outcome = away ? ABSENT : REFUSED;
		goto done;
	}
	ssize_t sent = send_first(fd, request, call->netns);
	bool whole = sent > 0 && write_all(fd, request->data + sent, request->size - (size_t)sent);
	if (whole && shutdown(fd, SHUT_WR))
		goto done;
	struct scan scan;
	/* an agent that refuses a request may answer before it has read it all */
	if (!read_all(fd, answer, ANSWER_LIMIT))
		outcome = errno == EAGAIN ? LATE : CUT_OFF;
	else if (answer->size && scan_document(&scan, answer->data, answer->size, NULL, NULL))
		outcome = ANSWERED;
	else
		errno = ECONNRESET;
done:;
	int saved = errno;
	close(fd);
	errno = saved;
	return outcome;
}

static void take_code(void *context, struct slice key, struct slice value)
{
	if (is(key, "code"))
		number(value, context);
}

/* Print the agent's answer: `{}` is success without a result, a `code` is an error. */
static int print_answer(const struct buffer *answer)
{
	struct scan scan;
	double code = 0;
	bool any = false;
	scan_document(&scan, answer->data, answer->size, take_code, &code);
	for (size_t i = 0; i < answer->size; i++)
		any |= answer->data[i] == '"';
	if (any && (!write_all(STDOUT_FILENO, answer->data, answer->size) || !write_all(STDOUT_FILENO, "\n", 1)))
		return IO_FAILURE;
	if (code == 0)
		return 0;
	return code >= 1 && code <= 255 ? (int)code : 1;
}

static bool make_folder(char *path)
{
	for (char *slash = path + 1; (slash = strchr(slash, '/')); slash++) {
		*slash = 0;
		int failed = mkdir(path, 0700) && errno != EEXIST;
		*slash = '/';
		if (failed)
			return false;
	}
	return !mkdir(path, 0700) || errno == EEXIST;
}

/* Keep a DEL for the agent, safe against a crash at any point: whole in the folder, or not there at all. */
static bool journal(const struct call *call, const struct buffer *request)
{
	char folder[PATH_MAX / 2 + 16], hidden[80], name[64];
	struct timespec t;
	snprintf(folder, sizeof folder, "%s/deletes", call->state);
	if (!make_folder(folder))
		return false;
	int dir = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (dir < 0)
		return false;
	clock_gettime(CLOCK_REALTIME, &t);
	unsigned long long ns = (unsigned long long)t.tv_sec * 1000000000ULL + (unsigned long long)t.tv_nsec;
	snprintf(name, sizeof name, "%020llu-%ld.json", ns, (long)getpid());
	snprintf(hidden, sizeof hidden, ".%s", name);
	int fd = openat(dir, hidden, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	bool kept = fd >= 0 && write_all(fd, request->data, request->size) && !fsync(fd);
	int saved = errno;
	if (fd >= 0)
		close(fd);
	if (kept && (renameat(dir, hidden, dir, name) || fsync(dir))) {
		kept = false;
		saved = errno;
	}
	if (!kept && fd >= 0)
		unlinkat(dir, hidden, 0);
	close(dir);
	errno = saved;
	return kept;
}

/* DEL: by the agent, else by the journal; a pod's end must not wait for ours. */
static int delete(const struct call *call, const struct buffer *request)
{
	struct buffer answer = {0};
	enum outcome outcome = ask(call, request, DEL_ANSWER_S, &answer);
	int code = 0;
	if (outcome == ANSWERED)
		code = print_answer(&answer);
	else if (!journal(call, request))
		code = fail(call->version, TRY_AGAIN, "the runtime tries again; see that the disk can be written",
			    "no agent answers on %s, and the DEL can't be journaled in %s/deletes: %s", call->socket,
			    call->state, strerror(errno));
	free(answer.data);
	return code;
}

static int unanswered(const struct call *call, enum outcome outcome, enum code code)
{
	const char *why = outcome == LATE ? "it takes too long" : strerror(errno);
	if (outcome == REFUSED)
		code = IO_FAILURE;
	return fail(call->version, code, "see that testcni's agent runs on this node, and its log",
		    "no agent answers on %s: %s", call->socket, why);
}

/* ADD is tried until an agent answers or the wait is over; the other verbs ask once. */
static int ask_until(const struct call *call, const struct buffer *request, double wait, enum code code)
{
	struct buffer answer = {0};
	int64_t end = now_ms() + (int64_t)(wait * 1000);
	enum outcome outcome;
	int status;
	while ((outcome = ask(call, request, ANSWER_S, &answer)) == ABSENT || outcome == CUT_OFF) {
		int saved = errno;
		if (now_ms() >= end) {
			errno = saved;
			break;
		}
		usleep(RETRY_MS * 1000);
	}
	status = outcome == ANSWERED ? print_answer(&answer) : unanswered(call, outcome, code);
	free(answer.data);
	return status;
}

static int forward(struct call *call, const struct buffer *conf)
{
	struct buffer request = {0};
	int status;
	open_netns(call);
	put_request(&request, call, conf);
	if (request.failed)
		status = fail(call->version, IO_FAILURE, "free some memory", "no memory for the request");
	else if (!strcmp(call->command, "DEL"))
		status = delete(call, &request);
	else if (!strcmp(call->command, "ADD"))
		status = ask_until(call, &request, call->wait, TRY_AGAIN);
	else
		status = ask_until(call, &request, 0, NOT_AVAILABLE);
	free(request.data);
	if (call->netns >= 0)
		close(call->netns);
	return status;
}

static int run(const struct buffer *conf)
{
	struct call call = {.command = environment("CNI_COMMAND"), .version = NEWEST, .wait = 20, .netns = -1};
	struct scan scan;
	strcpy(call.socket, "/run/testcni/agent.sock");
	strcpy(call.state, "/var/lib/testcni");
	bool json = scan_document(&scan, conf->size ? conf->data : "", conf->size, take_member, &call);
	if (!strcmp(call.command, "VERSION"))
		return print_versions(call.version);
	if (!find(commands, call.command))
		return fail(call.version, ENVIRONMENT, "allowed: ADD, DEL, CHECK, GC, STATUS, VERSION",
			    "CNI_COMMAND: '%s' is no command of CNI", call.command);
	if (!json)
		return fail(call.version, DECODING, "give the netconf on stdin", "netconf is no JSON: %s at byte %zu",
			    scan.wrong, (size_t)(scan.at - scan.start));
	if (call.wrong)
		return fail(call.version, CONFIG, call.allowed, "%s: %.*s is not allowed", call.wrong,
			    (int)(call.value.size < 200 ? call.value.size : 200), call.value.data);
	return forward(&call, conf);
}

int main(int argc, char **argv)
{
	struct buffer conf = {0};
	(void)argv;
	signal(SIGPIPE, SIG_IGN);
	if (argc > 1 || (!getenv("CNI_COMMAND") && isatty(STDIN_FILENO))) {
		dprintf(STDERR_FILENO, "testcni %s, a CNI plugin for CNI 0.3.0 to " NEWEST
				       "; a container runtime calls it\n", VERSION);
		return 0;
	}
	if (!read_all(STDIN_FILENO, &conf, STDIN_LIMIT))
		return fail(NEWEST, DECODING, "at most 1 MiB", "netconf can't be read from stdin: %s", strerror(errno));
	int status = run(&conf);
	free(conf.data);
	return status;
}
