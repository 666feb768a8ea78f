// SPDX-License-Identifier: Apache-2.0
/* Complete reads and writes, the agent's socket, and the journal of DELs without an agent. */
#ifndef TESTCNI_IO_H
#define TESTCNI_IO_H

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "json.h"

static inline bool write_all(int fd, const char *data, size_t size)
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

/* Read until the end; false with errno, which is EFBIG if there is more than `limit`. */
static inline bool read_all(int fd, struct buffer *b, size_t limit)
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

/* Send the first bytes together with the descriptor of the pod's namespace. */
static inline ssize_t send_first(int fd, const struct buffer *request, int netns)
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
	ssize_t sent;
	do
		sent = sendmsg(fd, &message, 0);
	while (sent < 0 && errno == EINTR);
	return sent;
}

/* Limit the time of each connect, write and read. */
static inline void limit(int fd, int64_t ms)
{
	int64_t some = ms > 0 ? ms : 1; /* 0 would mean no limit */
	struct timeval time = {.tv_sec = some / 1000, .tv_usec = some % 1000 * 1000};
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &time, sizeof time);
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &time, sizeof time);
}

/* Connect, and wait while the agent's backlog is full; false with errno. */
static inline bool reach(int fd, const char *path, int64_t ms)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	memcpy(address.sun_path, path, sizeof address.sun_path);
	limit(fd, ms);
	return !connect(fd, (struct sockaddr *)&address, sizeof address);
}

/* Open a folder below `at`; if it is missing, create it and sync its parent. */
static inline int open_folder(int at, const char *name)
{
	bool made = !mkdirat(at, name, 0700);
	if (!made && errno != EEXIST)
		return -1;
	int folder = openat(at, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (folder >= 0 && made && fsync(at)) {
		close(folder);
		return -1;
	}
	return folder;
}

/* Open the folder <state>/deletes, and create it and its parents if missing; -1 with errno. */
static inline int open_journal(const char *state)
{
	char path[PATH_MAX];
	char *rest = path, *name;
	int folder = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	snprintf(path, sizeof path, "%s/deletes", state);
	while (folder >= 0 && (name = strtok_r(NULL, "/", &rest))) {
		int next = open_folder(folder, name), error = errno;
		close(folder);
		errno = error;
		folder = next;
	}
	return folder;
}

/* Write a file atomically: after a crash it is complete, or does not exist. */
static inline bool write_file(int folder, const char *name, const struct buffer *bytes)
{
	char hidden[80];
	snprintf(hidden, sizeof hidden, ".%s.tmp", name);
	int fd = openat(folder, hidden, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0)
		return false;
	bool kept = write_all(fd, bytes->data, bytes->size) && !fsync(fd);
	kept = kept && !renameat(folder, hidden, folder, name) && !fsync(folder);
	int error = errno;
	close(fd);
	if (!kept)
		unlinkat(folder, hidden, 0);
	errno = error;
	return kept;
}

/* Journal a request under a name that sorts by time; false with errno. */
static inline bool journal(const char *state, const struct buffer *request)
{
	char name[64];
	struct timespec t;
	int folder = open_journal(state);
	if (folder < 0)
		return false;
	clock_gettime(CLOCK_REALTIME, &t);
	unsigned long long ns = (unsigned long long)t.tv_sec * 1000000000ULL + (unsigned long long)t.tv_nsec;
	snprintf(name, sizeof name, "%020llu-%ld.json", ns, (long)getpid());
	bool kept = write_file(folder, name, request);
	int error = errno;
	close(folder);
	errno = error;
	return kept;
}

#endif
