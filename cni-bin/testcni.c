// SPDX-License-Identifier: Apache-2.0
/* testcni: the CNI plugin. It sends each call of the runtime to the agent of this node and prints its answer.
 *
 * CNI specification 1.1: environment and stdin are the call; stdout gets only the result.
 * An ADD waits for an agent that is being restarted; a DEL that finds no agent is journaled and succeeds.
 */
#define _GNU_SOURCE
#include <signal.h>

#include "io.h"
#include "json.h"

#define NEWEST "1.1.0"
#define STDIN_LIMIT (1 << 20)
#define ANSWER_LIMIT (16 << 20)
#define RETRY_MS 25
#define CONNECT_MS 1000 /* while the backlog is full; an ADD waits for all of agentWait */
#define LONGEST_WAIT 300
#ifndef PATIENCE_MS
#define PATIENCE_MS 60000 /* for an answer; in the agent, an ADD waits for its node and for an address to cool */
#endif

enum code { ENVIRONMENT = 4, IO_FAILURE = 5, DECODING = 6, CONFIG = 7, TRY_AGAIN = 11, NOT_AVAILABLE = 50 };

static const char *const versions[] = {"0.3.0", "0.3.1", "0.4.0", "1.0.0", NEWEST, NULL};
static const struct verb {
	const char *name;
	int answer_ms;
	enum code failure; /* when no agent answers */
} verbs[] = {
    {"ADD", 2 * PATIENCE_MS, TRY_AGAIN}, {"DEL", PATIENCE_MS, TRY_AGAIN},
    {"CHECK", PATIENCE_MS, NOT_AVAILABLE}, {"GC", 2 * PATIENCE_MS, NOT_AVAILABLE},
    {"STATUS", PATIENCE_MS, NOT_AVAILABLE},
};

struct call {
	const struct verb *verb;
	char version[16]; /* of the errors that are printed */
	char socket[sizeof((struct sockaddr_un *)0)->sun_path];
	char state[1024];
	double wait;	      /* seconds that an ADD waits for an agent */
	const char *wrong;    /* the name of a member with a wrong value ... */
	struct slice value;   /* ... that value ... */
	const char *allowed;  /* ... and the allowed values */
	int netns;	      /* descriptor, or -1 */
	const char *no_netns; /* why it is -1 */
};

static const struct call defaults = {
    .version = NEWEST, .socket = "/run/testcni/agent.sock", .state = "/var/lib/testcni", .wait = 20, .netns = -1,
};

enum outcome { ANSWERED, ABSENT, CUT_OFF, LATE, REFUSED };

/* The result of one attempt: the bytes of the answer, or the errno of the failure. */
struct reply {
	enum outcome outcome;
	int error;
	struct buffer answer;
};

/* The meaning of an answer: `{}` is success without a result; an answer with a number `code` is an error. */
struct verdict {
	size_t members;
	bool failed;
	double code;
};

static int64_t now_ms(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * INT64_C(1000) + t.tv_nsec / 1000000;
}

static bool known_version(const char *text)
{
	for (const char *const *version = versions; *version; version++)
		if (!strcmp(*version, text))
			return true;
	return false;
}

static const struct verb *find_verb(const char *name)
{
	for (size_t i = 0; i < sizeof verbs / sizeof *verbs; i++)
		if (!strcmp(verbs[i].name, name))
			return verbs + i;
	return NULL;
}

static const char *environment(const char *name)
{
	const char *value = getenv(name);
	return value ? value : "";
}

static void put_member(struct buffer *b, const char *key, const char *value)
{
	put(b, "\"");
	put(b, key);
	put(b, "\":");
	put_string(b, value, strlen(value));
}

/* Print an error as the specification says; returns the exit code. */
__attribute__((format(printf, 4, 5))) static int fail(const char *version, enum code code, const char *details, const char *format, ...)
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

/* At most 200 bytes of a value, and only whole characters. */
static struct slice excerpt(struct slice value)
{
	if (value.size > 200)
		for (value.size = 200; value.size && ((unsigned char)value.data[value.size] & 0xc0) == 0x80;)
			value.size--;
	return value;
}

/* Take an absolute path; if it is invalid, the default stays. */
static bool path(struct slice value, char *out, size_t room)
{
	char found[PATH_MAX];
	if (!plain_string(value, found, room) || *found != '/')
		return false;
	memcpy(out, found, strlen(found) + 1);
	return true;
}

/* Take the members of the netconf that the plugin needs; the agent checks all others, and the version. */
static void take_member(void *context, struct slice key, struct slice value)
{
	struct call *call = context;
	char version[sizeof call->version];
	const char *name = NULL, *allowed = NULL;
	if (*value.data == 'n') /* null means the default */
		return;
	if (is(key, "cniVersion")) {
		name = *value.data == '"' ? NULL : "cniVersion";
		allowed = "a string, one of 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0";
		if (plain_string(value, version, sizeof version) && known_version(version))
			memcpy(call->version, version, sizeof version);
	} else if (is(key, "socket")) {
		name = path(value, call->socket, sizeof call->socket) ? NULL : "socket";
		allowed = "an absolute path of at most 107 bytes";
	} else if (is(key, "stateDir")) {
		name = path(value, call->state, sizeof call->state) ? NULL : "stateDir";
		allowed = "an absolute path of at most 1023 bytes";
	} else if (is(key, "agentWait")) {
		bool good = number(value, &call->wait) && call->wait >= 0 && call->wait <= LONGEST_WAIT;
		name = good ? NULL : "agentWait";
		allowed = "a number of seconds from 0 to 300";
	}
	if (name) {
		call->wrong = name;
		call->value = excerpt(value);
		call->allowed = allowed;
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
	put_member(b, "command", call->verb->name);
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

/* Add the boot ID: after a reboot the pods are gone, and the clock may have been set back. */
static void put_boot_id(struct buffer *request)
{
	char id[37] = {0};
	int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
	ssize_t size = fd < 0 ? 0 : read(fd, id, sizeof id - 1);
	if (fd >= 0)
		close(fd);
	if (size <= 0)
		return;
	request->size--; /* its closing brace */
	put(request, ",");
	put_member(request, "bootID", id);
	put(request, "}");
}

static void take_verdict(void *context, struct slice key, struct slice value)
{
	struct verdict *verdict = context;
	verdict->members++;
	if (is(key, "code"))
		verdict->failed = number(value, &verdict->code);
}

static bool judge(const struct buffer *answer, struct verdict *verdict)
{
	struct scan scan;
	*verdict = (struct verdict){0};
	return answer->size && scan_document(&scan, answer->data, answer->size, take_verdict, verdict);
}

/* Send the request and read the answer. An agent that refuses may answer before it has read everything. */
static enum outcome converse(int fd, const struct buffer *request, int netns, struct buffer *answer)
{
	struct verdict verdict;
	ssize_t sent = send_first(fd, request, netns);
	if (sent < 0 || !write_all(fd, request->data + sent, request->size - (size_t)sent)) {
		if (errno == EAGAIN)
			return LATE;
	} else {
		shutdown(fd, SHUT_WR);
	}
	if (!read_all(fd, answer, ANSWER_LIMIT)) {
		if (errno == EAGAIN)
			return LATE;
		if (errno == EFBIG || errno == ENOMEM)
			return REFUSED;
	}
	return judge(answer, &verdict) ? ANSWERED : CUT_OFF;
}

/* Make one attempt, which waits at most `ms` for the connection. */
static void ask(const struct call *call, const struct buffer *request, int64_t ms, struct reply *reply)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	reply->answer.size = 0;
	if (fd >= 0 && reach(fd, call->socket, ms)) {
		limit(fd, call->verb->answer_ms);
		reply->outcome = converse(fd, request, call->netns, &reply->answer);
	} else {
		bool away = errno == ENOENT || errno == ECONNREFUSED || errno == EAGAIN || errno == EINTR;
		reply->outcome = away ? ABSENT : REFUSED;
	}
	reply->error = errno;
	if (fd >= 0)
		close(fd);
}

/* Repeat an ADD until an agent answers or the wait is over; other verbs are tried once. */
static void ask_until(const struct call *call, const struct buffer *request, struct reply *reply)
{
	const struct timespec pause = {.tv_nsec = RETRY_MS * 1000000L};
	bool patient = !strcmp(call->verb->name, "ADD");
	int64_t end = now_ms() + (patient ? (int64_t)(call->wait * 1000) : CONNECT_MS);
	for (;;) {
		ask(call, request, end - now_ms(), reply);
		if (!patient || (reply->outcome != ABSENT && reply->outcome != CUT_OFF) || now_ms() >= end)
			return;
		nanosleep(&pause, NULL);
	}
}

static int print_answer(const struct buffer *answer)
{
	struct verdict verdict;
	judge(answer, &verdict);
	if (verdict.members && !write_all(STDOUT_FILENO, answer->data, answer->size)) {
		dprintf(STDERR_FILENO, "testcni: the result can't be printed: %s\n", strerror(errno));
		return IO_FAILURE;
	}
	if (!verdict.failed)
		return 0;
	bool exit_code = verdict.code >= 1 && verdict.code <= 255 && verdict.code == (int)verdict.code;
	return exit_code ? (int)verdict.code : 1;
}

static int unanswered(const struct call *call, const struct reply *reply)
{
	const char *details = "is testcni's agent (its DaemonSet) running on this node? See its log";
	enum code code = call->verb->failure;
	switch (reply->outcome) {
	case LATE:
		return fail(call->version, code, details, "the agent on %s did not answer %s within %g s",
			    call->socket, call->verb->name, call->verb->answer_ms / 1e3);
	case CUT_OFF:
		return fail(call->version, code, details, "the agent on %s ended before its answer to %s was complete",
			    call->socket, call->verb->name);
	case ABSENT:
		return fail(call->version, code, details, "no agent answers on %s: %s", call->socket,
			    strerror(reply->error));
	default:
		return fail(call->version, IO_FAILURE, "check that this is the agent's socket and that root calls it",
			    "cannot connect to the agent on %s: %s", call->socket, strerror(reply->error));
	}
}

/* Send the call to the agent; a DEL without an agent is journaled, as it must not delay the end of a pod. */
static int forward(struct call *call, const struct buffer *conf)
{
	struct buffer request = {0};
	struct reply reply = {0};
	int status = 0;
	open_netns(call);
	put_request(&request, call, conf);
	if (request.failed)
		return fail(call->version, TRY_AGAIN, "free some memory", "no memory for the request");
	ask_until(call, &request, &reply);
	if (reply.outcome == ANSWERED)
		status = print_answer(&reply.answer);
	else if (reply.outcome == REFUSED || strcmp(call->verb->name, "DEL"))
		status = unanswered(call, &reply);
	else if (put_boot_id(&request), request.failed || !journal(call->state, &request))
		status = fail(call->version, TRY_AGAIN, "make this folder writable, or start the agent",
			      "no agent answers on %s, and the DEL cannot be journaled in %s/deletes: %s",
			      call->socket, call->state, strerror(errno));
	free(reply.answer.data);
	free(request.data);
	return status;
}

static int not_json(const struct call *call, const struct scan *scan)
{
	size_t line = 1, column = 1;
	for (const char *c = scan->start; c < scan->at; c++) {
		column = *c == '\n' ? 1 : column + 1;
		line += *c == '\n';
	}
	return fail(call->version, DECODING, "give a netconf on stdin, as the CNI specification says",
		    "the netconf is not a JSON object: %s at line %zu, column %zu", scan->wrong, line, column);
}

/* Print an error if the netconf is invalid; returns 0 if it is valid. */
static int refuse(const struct call *call, const struct scan *scan, int unread)
{
	if (unread == EFBIG)
		return fail(NEWEST, DECODING, "at most 1 MiB", "the netconf on stdin is too long");
	if (unread)
		return fail(NEWEST, IO_FAILURE, "give a netconf on stdin, as the CNI specification says",
			    "cannot read stdin: %s", strerror(unread));
	if (scan->wrong)
		return not_json(call, scan);
	if (call->wrong)
		return fail(call->version, CONFIG, call->allowed, "%s: %.*s is not allowed", call->wrong,
			    (int)call->value.size, call->value.data);
	return 0;
}

/* `unread` is the errno of reading the netconf. VERSION and DEL need none, so that every pod can be deleted. */
static int run(const struct buffer *conf, int unread)
{
	const char *command = environment("CNI_COMMAND");
	struct call call = defaults;
	struct scan scan;
	scan_document(&scan, conf->size ? conf->data : "", conf->size, take_member, &call);
	call.verb = find_verb(command);
	if (!strcmp(command, "VERSION"))
		return print_versions(call.version);
	if (!call.verb)
		return fail(call.version, ENVIRONMENT, "allowed: ADD, DEL, CHECK, GC, STATUS, VERSION",
			    "CNI_COMMAND: '%.200s' is not a command of CNI", command);
	const struct buffer none = {0};
	int status = strcmp(command, "DEL") ? refuse(&call, &scan, unread) : 0;
	return status ? status : forward(&call, unread ? &none : conf);
}

int main(int argc, char **argv)
{
	struct buffer conf = {0};
	(void)argv;
	signal(SIGPIPE, SIG_IGN);
	if (!getenv("CNI_COMMAND") && (argc > 1 || isatty(STDIN_FILENO))) {
		dprintf(STDERR_FILENO, "testcni %s, a CNI plugin for CNI 0.3.0 to %s; a container runtime calls it\n",
			VERSION, NEWEST);
		return 0;
	}
	int unread = read_all(STDIN_FILENO, &conf, STDIN_LIMIT) ? 0 : errno;
	int status = run(&conf, unread);
	free(conf.data);
	return status;
}
