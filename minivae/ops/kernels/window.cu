// Which pixels a pixel sees in each of the products of product.cu. The letters are those of ops/__init__.py: a Geometry
// has the big side (H, W, I) and the small side (h, w, O), with weights (kernel, kernel, I, O).

enum Op { CONV, CONV_DX, CONV_DX_ALL, CONV_DW };

// Division of numbers from 0 to 2^31 - 1 by one that is used often: a multiplication by 2^32 / by, whose result is at
// most one too small. A true integer division takes about thirty instructions.
struct Divider {
  int by;
  unsigned inverse;

  __device__ __forceinline__ Divider(int by) : by(by), inverse(by > 0 ? 0xffffffffu / by : 0) {}
  __device__ __forceinline__ int operator()(int n) const {
    const int q = __umulhi(n, inverse);
    return n - q * by >= by ? q + 1 : q;
  }
};
__device__ __forceinline__ int operator/(int n, const Divider& d) { return d(n); }
__device__ __forceinline__ int operator%(int n, const Divider& d) { return n - d(n) * d.by; }

struct Shape {
  int images, H, W, I, h, w, O, kernel, top, left;
  Divider stride;
};

// The output pixels that see their source through the same taps. Pixel (i, j) of the class is output pixel (i step + y,
// j step + x). Through tap (a, b), a < tall, b < wide, it sees source pixel (i mul + top +- a, j mul + left +- b),
// weighted by the kernel's tap (first_a + a stride, first_b + b stride). For CONV the sign is + and the stride of taps
// is 1; for CONV_DX the sign is -.
struct Class {
  Divider height, width;
  int y, x, step, mul, top, left, tall, wide, first_a, first_b;

  __device__ __forceinline__ int pixels() const { return height.by * width.by; }
};

__device__ __forceinline__ int ceil_div(int a, int b) { return (a + b - 1) / b; }
__device__ __forceinline__ int ceil_div(int a, const Divider& b) { return (a + b.by - 1) / b; }

template <Op OP> __device__ __forceinline__ int classes(const Shape& s) {
  return OP == CONV_DX ? s.stride.by * s.stride.by : 1;
}

template <Op OP> __device__ __forceinline__ Class pixel_class(const Shape& s, int q) {
  const int step = s.stride.by;
  if (OP == CONV || OP == CONV_DW) return {s.h, s.w, 0, 0, 1, step, -s.top, -s.left, s.kernel, s.kernel, 0, 0};
  if (OP == CONV_DX_ALL) {  // a step x step patch is one pixel; its taps are those of all the classes
    const int down = (step - 1 + s.top) / s.stride, right = (step - 1 + s.left) / s.stride;
    return {s.h, s.w, 0, 0, step, 1, down, right, down + (s.kernel - 1 - s.top) / s.stride + 1,
            right + (s.kernel - 1 - s.left) / s.stride + 1, s.top - step * down, s.left - step * right};
  }
  const int a = q / s.stride, b = q % s.stride;  // the class of the taps a, a + stride, ...: heaviest first
  const int y = (a + step * s.kernel - s.top) % s.stride, x = (b + step * s.kernel - s.left) % s.stride;
  return {ceil_div(max(s.H - y, 0), s.stride), ceil_div(max(s.W - x, 0), s.stride), y, x, step, 1,
          (y + s.top - a) / s.stride, (x + s.left - b) / s.stride,
          b < s.kernel ? ceil_div(max(s.kernel - a, 0), s.stride) : 0, ceil_div(max(s.kernel - b, 0), s.stride), a, b};
}

// Where a pixel's window starts in the source, and which of its taps are inside the image: bit a stands for row a of
// the taps, bit TAP_BITS + b for column b.
struct Window {
  int offset;
  unsigned taps;
};

constexpr unsigned NO_TAP = ~0u;  // no window has all of these

__device__ __forceinline__ unsigned tap_bits(int a, int b) { return 1u << a | 1u << TAP_BITS << b; }

template <bool FORTH> __device__ __forceinline__ unsigned inside(int at, int size, int taps) {
  const int low = FORTH ? max(-at, 0) : max(at - size + 1, 0), high = min(FORTH ? size - at : at + 1, taps);
  return high > low ? (1u << high) - (1u << low) : 0;
}

template <bool FORTH>
__device__ __forceinline__ Window window(const Class& c, int images, int height, int width, int channels, int m) {
  const int row = m / c.width, n = row / c.height;
  if (n >= images) return {0, 0};
  const int i = (row - n * c.height.by) * c.mul + c.top, j = (m - row * c.width.by) * c.mul + c.left;
  return {((n * height + i) * width + j) * channels,
          inside<FORTH>(i, height, c.tall) | inside<FORTH>(j, width, c.wide) << TAP_BITS};
}
