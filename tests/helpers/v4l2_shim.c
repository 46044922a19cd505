/* LD_PRELOAD shim: a V4L2 capture device /dev/video42 fed from a shared file of frames, so
   cv2.VideoCapture('/dev/video42', CAP_V4L2) runs OpenCV's real V4L2 backend
   (QUERYCAP/ENUM_FMT/S_FMT/S_PARM/REQBUFS/mmap/QBUF/STREAMON/poll+DQBUF) with no kernel driver. $V4L2_SHIM_FRAMES: file
   of concatenated JPEGs, each prefixed with a little-endian u32 length; loops; paced at S_PARM (default 30 fps). When the
   file goes, so does the camera. $V4L2_SHIM_FLASH: file of one such JPEG, shown in place of the others while it is there. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/videodev2.h>
#include <poll.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/select.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>
#define DEV "/dev/video42"
#define BUFSZ (2 << 20)
static int FD = -1, nbuf, on, W = 640, H = 480, num = 1, den = 30;
static uint32_t seq;
static unsigned char *mem, *src;
static size_t srclen, pos;
static int q[32], qh, qt;
#define REAL(ret, name, ...) ret (*r)(__VA_ARGS__) = dlsym(RTLD_NEXT, #name)
static void arm(void) {
    struct itimerspec t = {0};
    long ns = 1000000000L / den * num;
    if (on) {
        t.it_interval.tv_nsec = ns % 1000000000;
        t.it_interval.tv_sec = ns / 1000000000;
        t.it_value = t.it_interval;
    }
    timerfd_settime(FD, 0, &t, 0);
}
static uint32_t flash(unsigned char *to) {
    const char *f = getenv("V4L2_SHIM_FLASH");
    FILE *file = f ? fopen(f, "rb") : NULL;
    uint32_t l = 0;
    if (!file)
        return 0;
    if (fread(&l, 4, 1, file) != 1 || l > BUFSZ || fread(to, 1, l, file) != l)
        l = 0;
    fclose(file);
    return l;
}
static int vopen(void) {
    REAL(int, open, const char *, int, ...);
    const char *f = getenv("V4L2_SHIM_FRAMES");
    int s = r(f ? f : "", O_RDONLY);
    struct stat st;
    if (s < 0) {
        errno = ENODEV;
        return -1;
    }
    fstat(s, &st);
    srclen = st.st_size;
    src = mmap(0, srclen, PROT_READ, MAP_PRIVATE, s, 0);
    close(s);
    FD = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    pos = 0;
    seq = 0;
    on = 0;
    nbuf = 0;
    qh = qt = 0;
    return FD;
}
#define OPENER(name)                                                                                                   \
    int name(const char *p, int fl, ...) {                                                                             \
        va_list a;                                                                                                     \
        va_start(a, fl);                                                                                               \
        int m = va_arg(a, int);                                                                                        \
        va_end(a);                                                                                                     \
        if (p && !strcmp(p, DEV))                                                                                      \
            return vopen();                                                                                            \
        REAL(int, name, const char *, int, ...);                                                                       \
        return r(p, fl, m);                                                                                            \
    }
OPENER(open) OPENER(open64) int close(int fd) {
    REAL(int, close, int);
    if (fd == FD && FD >= 0)
        FD = -1;
    return r(fd);
}
static int fakestat(struct stat *s) {
    memset(s, 0, sizeof *s);
    s->st_mode = S_IFCHR | 0660;
    s->st_rdev = makedev(81, 42);
    return 0;
}
int stat(const char *p, struct stat *s) {
    if (p && !strcmp(p, DEV))
        return fakestat(s);
    REAL(int, stat, const char *, struct stat *);
    return r(p, s);
}
int stat64(const char *p, struct stat64 *s) {
    if (p && !strcmp(p, DEV))
        return fakestat((struct stat *)s);
    REAL(int, stat64, const char *, struct stat64 *);
    return r(p, s);
}
int access(const char *p, int mode) {
    if (p && !strcmp(p, DEV))
        return 0;
    REAL(int, access, const char *, int);
    return r(p, mode);
}
void *mmap(void *a, size_t l, int pr, int fl, int fd, off_t o) {
    if (fd >= 0 && fd == FD)
        return mem + o;
    REAL(void *, mmap, void *, size_t, int, int, int, off_t);
    return r(a, l, pr, fl, fd, o);
}
void *mmap64(void *a, size_t l, int pr, int fl, int fd, off64_t o) {
    if (fd >= 0 && fd == FD)
        return mem + o;
    REAL(void *, mmap64, void *, size_t, int, int, int, off64_t);
    return r(a, l, pr, fl, fd, o);
}
int munmap(void *a, size_t l) {
    if (mem && (unsigned char *)a >= mem && (unsigned char *)a < mem + 32 * (size_t)BUFSZ)
        return 0;
    REAL(int, munmap, void *, size_t);
    return r(a, l);
}
static void fmt(struct v4l2_pix_format *f) {
    f->width = W;
    f->height = H;
    f->pixelformat = V4L2_PIX_FMT_MJPEG;
    f->field = V4L2_FIELD_NONE;
    f->sizeimage = BUFSZ;
    f->colorspace = V4L2_COLORSPACE_JPEG;
}
int ioctl(int fd, unsigned long rq, ...) {
    va_list va;
    va_start(va, rq);
    void *p = va_arg(va, void *);
    va_end(va);
    REAL(int, ioctl, int, unsigned long, ...);
    if (fd != FD || FD < 0)
        return r(fd, rq, p);
    switch ((uint32_t)rq) {
    case (uint32_t)VIDIOC_QUERYCAP: {
        struct v4l2_capability *c = p;
        memset(c, 0, sizeof *c);
        strcpy((char *)c->driver, "shim");
        strcpy((char *)c->card, "Virtual camera");
        strcpy((char *)c->bus_info, "usb-virtual-1");
        c->device_caps = V4L2_CAP_VIDEO_CAPTURE | V4L2_CAP_STREAMING;
        c->capabilities = c->device_caps | V4L2_CAP_DEVICE_CAPS;
        return 0;
    }
    case (uint32_t)VIDIOC_ENUMINPUT: {
        struct v4l2_input *i = p;
        if (i->index) {
            errno = EINVAL;
            return -1;
        }
        strcpy((char *)i->name, "cam");
        i->type = V4L2_INPUT_TYPE_CAMERA;
        return 0;
    }
    case (uint32_t)VIDIOC_G_INPUT: *(int *)p = 0; return 0;
    case (uint32_t)VIDIOC_S_INPUT: return 0;
    case (uint32_t)VIDIOC_ENUM_FMT: {
        struct v4l2_fmtdesc *f = p;
        if (f->index) {
            errno = EINVAL;
            return -1;
        }
        f->pixelformat = V4L2_PIX_FMT_MJPEG;
        return 0;
    }
    case (uint32_t)VIDIOC_G_FMT:
    case (uint32_t)VIDIOC_TRY_FMT:
    case (uint32_t)VIDIOC_S_FMT: {
        struct v4l2_format *f = p;
        if (f->type != V4L2_BUF_TYPE_VIDEO_CAPTURE) {
            errno = EINVAL;
            return -1;
        }
        fmt(&f->fmt.pix);
        return 0;
    }
    case (uint32_t)VIDIOC_G_PARM:
    case (uint32_t)VIDIOC_S_PARM: {
        struct v4l2_streamparm *s = p;
        struct v4l2_captureparm *c = &s->parm.capture;
        if (rq == VIDIOC_S_PARM && c->timeperframe.denominator) {
            num = c->timeperframe.numerator ?: 1;
            den = c->timeperframe.denominator;
            arm();
        }
        memset(c, 0, sizeof *c);
        c->capability = V4L2_CAP_TIMEPERFRAME;
        c->timeperframe.numerator = num;
        c->timeperframe.denominator = den;
        return 0;
    }
    case (uint32_t)VIDIOC_REQBUFS: {
        struct v4l2_requestbuffers *b = p;
        if (b->memory != V4L2_MEMORY_MMAP) {
            errno = EINVAL;
            return -1;
        }
        if (b->count > 32)
            b->count = 32;
        nbuf = b->count;
        if (!mem && nbuf) {
            REAL(void *, mmap, void *, size_t, int, int, int, off_t);
            mem = r(0, 32 * (size_t)BUFSZ, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        }
        qh = qt = 0;
        return 0;
    }
    case (uint32_t)VIDIOC_QUERYBUF: {
        struct v4l2_buffer *b = p;
        b->length = BUFSZ;
        b->m.offset = b->index * BUFSZ;
        b->flags = 0;
        return 0;
    }
    case (uint32_t)VIDIOC_QBUF: {
        struct v4l2_buffer *b = p;
        q[qt++ % 32] = b->index;
        return 0;
    }
    case (uint32_t)VIDIOC_STREAMON:
        on = 1;
        arm();
        return 0;
    case (uint32_t)VIDIOC_STREAMOFF:
        on = 0;
        arm();
        qh = qt = 0;
        return 0;
    case (uint32_t)VIDIOC_DQBUF: {
        struct v4l2_buffer *b = p;
        uint64_t n = 0;
        REAL(int, access, const char *, int);
        if (r(getenv("V4L2_SHIM_FRAMES"), F_OK)) {
            errno = ENODEV;
            return -1;
        }
        if (qh == qt || read(FD, &n, 8) != 8) {
            errno = EAGAIN;
            return -1;
        }
        for (; n > 1; n--) {
            uint32_t l;
            memcpy(&l, src + pos, 4);
            pos += 4 + l;
            seq++;
            if (pos >= srclen)
                pos = 0;
        } /* frames the reader was too late for are dropped, as a driver does */
        uint32_t l;
        memcpy(&l, src + pos, 4);
        int i = q[qh++ % 32];
        memcpy(mem + (size_t)i * BUFSZ, src + pos + 4, l);
        pos += 4 + l;
        l = flash(mem + (size_t)i * BUFSZ) ?: l;
        if (pos >= srclen)
            pos = 0;
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        b->index = i;
        b->bytesused = l;
        b->length = BUFSZ;
        b->sequence = seq++;
        b->m.offset = i * BUFSZ;
        b->field = V4L2_FIELD_NONE;
        b->flags = V4L2_BUF_FLAG_TIMESTAMP_MONOTONIC;
        b->timestamp.tv_sec = t.tv_sec;
        b->timestamp.tv_usec = t.tv_nsec / 1000;
        return 0;
    }
    case (uint32_t)VIDIOC_QUERYCTRL:
    case (uint32_t)VIDIOC_G_CTRL:
    case (uint32_t)VIDIOC_S_CTRL:
    case (uint32_t)VIDIOC_CROPCAP:
    case (uint32_t)VIDIOC_S_CROP: errno = EINVAL; return -1;
    }
    errno = ENOTTY;
    return -1;
}
