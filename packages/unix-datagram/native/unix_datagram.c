/*
 * Unix datagram sockets for Node, which has none: open and bind, receive, send, close, and nothing else. What to do with
 * packets and errors is the business of the TypeScript around it.
 *
 * It is written against Node-API, so one build serves every version of Node, and in threads too. Watching a descriptor takes
 * libuv, whose functions a Node exports; its handles are used as opaque memory of the size that it tells, so that no header
 * of a particular Node is needed.
 *
 * Errors are returned as negative numbers of the system's (`-ENOENT`), never thrown.
 */
#define _GNU_SOURCE
#define NAPI_VERSION 8
#include <node_api.h>

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

/* ---- libuv, as every version 1 has it */

enum { UV_POLL = 8, UV_READABLE = 1 };
typedef struct uv_loop_s uv_loop_t;
typedef void uv_handle_t;
size_t uv_handle_size(int type);
int uv_poll_init(uv_loop_t *loop, uv_handle_t *handle, int fd);
int uv_poll_start(uv_handle_t *handle, int events, void (*callback)(uv_handle_t *, int status, int events));
void uv_close(uv_handle_t *handle, void (*callback)(uv_handle_t *));
void uv_handle_set_data(uv_handle_t *handle, void *data);
void *uv_handle_get_data(const uv_handle_t *handle);

/* ---- what is received, as `internal/native.ts` reads it */

/*
 * The memory that both sides share begins with a table of three numbers for each packet: how many bytes it has, how many its
 * sender's address has, and whether it was cut. After the table come the addresses, each in a place of its own, and after
 * those the packets, one after the other.
 */
enum { SLOTS = 32, ADDRESS_SIZE = 112, ADDRESSES = SLOTS * 3 * 4, PACKETS = ADDRESSES + SLOTS * ADDRESS_SIZE };

typedef struct {
  int fd;
  uv_handle_t *poll;
  napi_env env;
  napi_async_context context;
  napi_async_cleanup_hook_handle hook;
  napi_ref on_packets;
  napi_ref memory_ref;
  uint8_t *memory;
  size_t capacity; /* for packets */
  size_t max_packet_size;
  int owners; /* the value in JavaScript, and the handle of the event loop */
} Socket;

static void release(Socket *self) {
  if (--self->owners == 0) free(self);
}

static napi_value number(napi_env env, int value) {
  napi_value result;
  napi_create_int32(env, value, &result);
  return result;
}

/* An address is a string of its bytes; an abstract one begins with a NUL byte. Gives its length, or a negative error. */
static int address_of(napi_env env, napi_value value, struct sockaddr_un *address) {
  char bytes[sizeof address->sun_path + 2];
  size_t length = 0;
  memset(address, 0, sizeof *address);
  address->sun_family = AF_UNIX;
  napi_get_value_string_latin1(env, value, bytes, sizeof bytes, &length);
  if (length == 0) return -EINVAL;
  if (length > sizeof address->sun_path) return -ENAMETOOLONG;
  memcpy(address->sun_path, bytes, length);
  return (int)(offsetof(struct sockaddr_un, sun_path) + length);
}

static int open_socket(void) {
#ifdef SOCK_CLOEXEC
  int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
#else
  int fd = socket(AF_UNIX, SOCK_DGRAM, 0);
  if (fd >= 0) {
    fcntl(fd, F_SETFD, FD_CLOEXEC);
    fcntl(fd, F_SETFL, O_NONBLOCK);
  }
#endif
  return fd < 0 ? -errno : fd;
}

/* ---- receive */

/* Up to SLOTS packets, as many as there are and have room. */
static int receive(Socket *self) {
  int32_t *table = (int32_t *)self->memory;
  size_t used = 0;
  int count = 0;
  while (count < SLOTS && used + self->max_packet_size <= self->capacity) {
    struct sockaddr_un *from = (struct sockaddr_un *)(self->memory + ADDRESSES + count * ADDRESS_SIZE);
    struct iovec vector = {self->memory + PACKETS + used, self->max_packet_size};
    struct msghdr message = {0};
    message.msg_name = from;
    message.msg_namelen = sizeof *from;
    message.msg_iov = &vector;
    message.msg_iovlen = 1;
    /* Descriptors that somebody passes along have no room, so the system closes them. */
    ssize_t length = recvmsg(self->fd, &message, 0);
    if (length < 0) {
      if (errno == EINTR) continue;
      break;
    }
    size_t address = message.msg_namelen > offsetof(struct sockaddr_un, sun_path)
      ? message.msg_namelen - offsetof(struct sockaddr_un, sun_path)
      : 0;
    if (address > sizeof from->sun_path) address = sizeof from->sun_path;
    /* The NUL byte after a path does not belong to it; the one before an abstract name does. */
    if (address > 0 && from->sun_path[0] != 0) address = strnlen(from->sun_path, address);
    table[count * 3] = (int32_t)length;
    table[count * 3 + 1] = (int32_t)address;
    table[count * 3 + 2] = (message.msg_flags & MSG_TRUNC) != 0;
    used += (size_t)length;
    count++;
  }
  return count;
}

static void on_event(uv_handle_t *handle, int status, int events) {
  Socket *self = uv_handle_get_data(handle);
  (void)events;
  if (status < 0) {
    /* libuv has stopped watching: an error is pending at the socket. It belongs to a packet, and is taken away. */
    int error;
    socklen_t size = sizeof error;
    getsockopt(self->fd, SOL_SOCKET, SO_ERROR, &error, &size);
    uv_poll_start(handle, UV_READABLE, on_event);
  }
  int count = receive(self);
  if (count == 0) return;
  napi_env env = self->env;
  napi_handle_scope scope;
  napi_value receiver, callback, argument, exception;
  napi_open_handle_scope(env, &scope);
  napi_get_global(env, &receiver);
  napi_get_reference_value(env, self->on_packets, &callback);
  napi_create_int32(env, count, &argument);
  if (napi_make_callback(env, self->context, receiver, callback, 1, &argument, NULL) == napi_pending_exception) {
    napi_get_and_clear_last_exception(env, &exception);
    napi_fatal_exception(env, exception);
  }
  napi_close_handle_scope(env, scope);
}

/* ---- close */

static void on_closed(uv_handle_t *handle) {
  Socket *self = uv_handle_get_data(handle);
  napi_remove_async_cleanup_hook(self->hook);
  free(handle);
  release(self);
}

static void close_socket(Socket *self) {
  uv_close(self->poll, on_closed);
  close(self->fd);
  self->fd = -1;
}

/* The thread ends, or the process does. */
static void on_exit_of_environment(napi_async_cleanup_hook_handle hook, void *data) {
  Socket *self = data;
  (void)hook;
  if (self->fd >= 0) close_socket(self);
}

static void on_collected(napi_env env, void *data, void *hint) {
  (void)env;
  (void)hint;
  release(data);
}

/* ---- what JavaScript calls */

/* close(socket) */
static napi_value js_close(napi_env env, napi_callback_info info) {
  size_t count = 1;
  napi_value arguments[1];
  Socket *self;
  napi_get_cb_info(env, info, &count, arguments, NULL, NULL);
  napi_get_value_external(env, arguments[0], (void **)&self);
  if (self->fd >= 0) {
    close_socket(self);
    napi_delete_reference(env, self->on_packets);
    napi_delete_reference(env, self->memory_ref);
    napi_async_destroy(env, self->context);
  }
  return NULL;
}

/* send(socket, to, bytes, length): 0, or an error */
static napi_value js_send(napi_env env, napi_callback_info info) {
  size_t count = 4, available = 0;
  napi_value arguments[4];
  Socket *self;
  struct sockaddr_un to;
  void *data = NULL;
  uint32_t length = 0;
  napi_get_cb_info(env, info, &count, arguments, NULL, NULL);
  napi_get_value_external(env, arguments[0], (void **)&self);
  if (self->fd < 0) return number(env, -EBADF);
  int size = address_of(env, arguments[1], &to);
  if (size < 0) return number(env, size);
  napi_get_typedarray_info(env, arguments[2], NULL, &available, &data, NULL, NULL);
  napi_get_value_uint32(env, arguments[3], &length);
  if (length > available) return number(env, -EINVAL);
  ssize_t sent;
  do sent = sendto(self->fd, data, length, 0, (struct sockaddr *)&to, (socklen_t)size);
  while (sent < 0 && errno == EINTR);
  return number(env, sent < 0 ? -errno : 0);
}

/* open(path, mode, maxPacketSize, memory, onPackets): a socket, or an error. The path "" binds none; the mode -1 sets none. */
static napi_value js_open(napi_env env, napi_callback_info info) {
  size_t count = 5, length = 0, available = 0;
  napi_value arguments[5];
  int32_t mode = -1, max_packet_size = 0;
  void *memory = NULL;
  napi_get_cb_info(env, info, &count, arguments, NULL, NULL);
  napi_get_value_int32(env, arguments[1], &mode);
  napi_get_value_int32(env, arguments[2], &max_packet_size);
  napi_get_typedarray_info(env, arguments[3], NULL, &available, &memory, NULL, NULL);
  napi_get_value_string_latin1(env, arguments[0], NULL, 0, &length);
  if (max_packet_size < 1 || available < PACKETS + (size_t)max_packet_size) return number(env, -EINVAL);

  int fd = open_socket();
  if (fd < 0) return number(env, fd);
  int error = 0;
  if (length > 0) {
    struct sockaddr_un address;
    int size = address_of(env, arguments[0], &address);
    /* The file is made with the socket's mode, less the umask: nobody may do more than the mode allows, at no time. */
    if (mode >= 0) fchmod(fd, (mode_t)mode);
    error = size < 0 ? size : bind(fd, (struct sockaddr *)&address, (socklen_t)size) != 0 ? -errno : 0;
  }
  uv_loop_t *loop;
  uv_handle_t *poll = NULL;
  Socket *self = NULL;
  if (error == 0) {
    poll = malloc(uv_handle_size(UV_POLL));
    self = calloc(1, sizeof *self);
    error = poll == NULL || self == NULL ? -ENOMEM
      : napi_get_uv_event_loop(env, &loop) != napi_ok ? -ENOTSUP
      : uv_poll_init(loop, poll, fd);
  }
  if (error != 0) {
    free(poll);
    free(self);
    close(fd);
    return number(env, error);
  }
  self->fd = fd;
  self->poll = poll;
  self->env = env;
  self->memory = memory;
  self->capacity = available - PACKETS;
  self->max_packet_size = (size_t)max_packet_size;
  self->owners = 2;
  napi_value name, result;
  napi_create_string_utf8(env, "UnixDatagram", NAPI_AUTO_LENGTH, &name);
  napi_async_init(env, NULL, name, &self->context);
  napi_create_reference(env, arguments[3], 1, &self->memory_ref);
  napi_create_reference(env, arguments[4], 1, &self->on_packets);
  napi_add_async_cleanup_hook(env, on_exit_of_environment, self, &self->hook);
  uv_handle_set_data(poll, self);
  uv_poll_start(poll, UV_READABLE, on_event);
  napi_create_external(env, self, on_collected, NULL, &result);
  return result;
}

/* probe(path): 0 if a socket answers there, or an error */
static napi_value js_probe(napi_env env, napi_callback_info info) {
  size_t count = 1;
  napi_value arguments[1];
  struct sockaddr_un address;
  napi_get_cb_info(env, info, &count, arguments, NULL, NULL);
  int size = address_of(env, arguments[0], &address);
  if (size < 0) return number(env, size);
  int fd = open_socket();
  if (fd < 0) return number(env, fd);
  int error = connect(fd, (struct sockaddr *)&address, (socklen_t)size) != 0 ? -errno : 0;
  close(fd);
  return number(env, error);
}

NAPI_MODULE_INIT() {
  napi_property_descriptor properties[] = {
    {"open", NULL, js_open, NULL, NULL, NULL, napi_enumerable, NULL},
    {"send", NULL, js_send, NULL, NULL, NULL, napi_enumerable, NULL},
    {"close", NULL, js_close, NULL, NULL, NULL, napi_enumerable, NULL},
    {"probe", NULL, js_probe, NULL, NULL, NULL, napi_enumerable, NULL},
    {"slots", NULL, NULL, NULL, NULL, number(env, SLOTS), napi_enumerable, NULL},
    {"addresses", NULL, NULL, NULL, NULL, number(env, ADDRESSES + offsetof(struct sockaddr_un, sun_path)), napi_enumerable, NULL},
    {"addressSize", NULL, NULL, NULL, NULL, number(env, ADDRESS_SIZE), napi_enumerable, NULL},
    {"packets", NULL, NULL, NULL, NULL, number(env, PACKETS), napi_enumerable, NULL}};
  napi_define_properties(env, exports, sizeof properties / sizeof *properties, properties);
  return exports;
}
