// The three convolutions as matrix products whose big operand is never stored: it is gathered from the image while the
// product runs. There is one kernel, `product`; Op says where its operands come from and where its result goes.
//
//   CONV: y (m, o) = sum over (tap, i) of x[m at tap, i] w[tap, i, o]
//   plain: y[...] = np.tensordot(cols, w, axes=3)
//
//   CONV_DX: dx (m, i) = sum over (tap, o) of dy[m at tap, o] w[tap, i, o]; CONV_DX_ALL: the same for few channels i
//   plain: col2im(np.tensordot(dy, w, axes=(3, 3)), g, dx)
//
//   CONV_DW: dw ((tap, i), o) = sum over m of x[m at tap, i] dy[m, o]
//   plain: dw[...] = np.tensordot(cols, dy, axes=((0, 1, 2), (0, 1, 2)))
//
// The dense products are these three with images and kernels of 1 x 1:
//   plain: y[...] = x @ w
//   plain: dx[...] = dy @ w.T
//   plain: dw[...] = x.T @ dy
//
// CONV_DX never touches the zeros that a stride puts between pixels. Output pixels whose coordinates agree modulo the
// stride see the same taps; they are a class, which has a product of its own (5 x 5, stride 2: 9 + 6 + 6 + 4 = 25
// taps). The heaviest class comes first. With 3 channels a class would fill 3 columns of a tile, so CONV_DX_ALL puts
// the channels of all classes side by side as columns, with a zero where a class lacks a tap (25 of 36 are used).
//
// Tiling: a block of 128 threads, whose warps stand 2 x 2 or 4 x 1, computes a tile of BM x BN from units. A unit is
// DEPTH of the contraction, 128 bytes. cp.async fills STAGES buffers ahead, so that copies are in flight while the
// tensor cores work, and one barrier a unit is enough. The units of all tiles stand in one row, which is cut into equal
// shares, one for each block: every multiprocessor has the same work whatever the shapes, where tiles of 9, 6, 6 and 4
// taps would differ. If several shares hold parts of a tile, the last of their blocks to finish adds up the tile,
// always in the same order.

// acc += a (WM, DEPTH) b (DEPTH, WN) by a warp, on tensor cores or not; either way the lanes share the result out as
// those of mma_m16n8k8 do.
template <bool TENSOR, class A, class B, int WM, int WN>
__device__ __forceinline__ void multiply(T (&acc)[WM / 16][WN / 8][4], const T* a, const T* b, int wm, int wn) {
  if constexpr (TENSOR) {
    const T* rows_from = a + A::at(wm, 0) + A::template lane<true>();
    const T* columns_from = b + B::at(wn, 0) + B::template lane<false>();
#pragma unroll
    for (int k = 0; k < DEPTH; k += 8) {
      unsigned rows[WM / 16][4], columns[WN / 16][4];
#pragma unroll
      for (int i = 0; i < WM / 16; ++i) A::template fragment<true>(rows[i], rows_from + A::at(16 * i, k));
#pragma unroll
      for (int j = 0; j < WN / 16; ++j) B::template fragment<false>(columns[j], columns_from + B::at(16 * j, k));
#pragma unroll
      for (int i = 0; i < WM / 16; ++i)
#pragma unroll
        for (int j = 0; j < WN / 8; ++j) mma_m16n8k8(acc[i][j], rows[i], columns[j / 2] + j % 2 * 2);
    }
  } else {
    const int g = wm + threadIdx.x % 32 / 4, t = wn + threadIdx.x % 4 * 2;
#pragma unroll 2
    for (int k = 0; k < DEPTH; ++k) {
      T column[WN / 8][2];
#pragma unroll
      for (int j = 0; j < WN / 8; ++j)
#pragma unroll
        for (int e = 0; e < 2; ++e) column[j][e] = b[B::at(t + 8 * j + e, k)];
#pragma unroll
      for (int i = 0; i < WM / 16; ++i) {
        const T upper = a[A::at(g + 16 * i, k)], lower = a[A::at(g + 16 * i + 8, k)];
#pragma unroll
        for (int j = 0; j < WN / 8; ++j) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            acc[i][j][e] += upper * column[j][e];
            acc[i][j][2 + e] += lower * column[j][e];
          }
        }
      }
    }
  }
}

// a is the gathered image: x, or dy for CONV_DX. b is w, or dy for CONV_DW. out is y, dx or dw. moments is (2, columns)
// or null. sum_pieces uses partial and counters; the moments use tiles and tile_counters. A block has `share` of the
// `units` in all.
template <Op OP, bool TENSOR, int BM, int BN, int WM, int WN, bool VECTOR, int BLOCKS>
__global__ void __launch_bounds__(THREADS, BLOCKS)
product(const T* a, const T* b, T* out, T* moments, T* partial, unsigned* counters, T* tiles, unsigned* tile_counters,
        int images, int H, int W, int I, int h, int w, int O, int kernel, int stride, int top, int left, int share,
        int units, int row_tiles_in_all) {
  constexpr int V = VECTOR ? 16 / sizeof(T) : 1;
  using LoadA = typename Operand<OP, BM, V>::A;
  using LoadB = typename OperandB<OP, BN, V>::B;
  using A = typename LoadA::To;
  using B = typename LoadB::To;
  DYN_SHARED(T, buffers);
  const Shape s{images, H, W, I, h, w, O, kernel, top, left, stride};
  const int warp = threadIdx.x / 32, wm = warp / (BN / WN) * WM, wn = warp % (BN / WN) * WN;
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  const int columns = OP == CONV_DX ? I : OP == CONV_DX_ALL ? stride * stride * I : O;
  const int column_tiles = ceil_div(columns, BN), end = min(units, (int)(blockIdx.x + 1) * share);
  int unit = blockIdx.x * share, units_before = 0, row_tiles_before = 0;  // of the classes before this one

  for (int q = 0; q < classes<OP>(s); ++q) {
    const Class c = pixel_class<OP>(s, q);
    const int channels = OP == CONV ? I : O, pixels = images * c.pixels();
    const int rows = OP == CONV_DW ? kernel * kernel * I : pixels, row_tiles = ceil_div(rows, BM);
    const int depth = OP == CONV_DW ? pixels : c.tall * c.wide * channels, per_tile = max(1, ceil_div(depth, DEPTH));
    const int class_end = units_before + row_tiles * column_tiles * per_tile;

    while (unit < min(end, class_end)) {
      const int tile = (unit - units_before) / per_tile, tile_begin = units_before + tile * per_tile;
      const int m0 = tile / column_tiles * BM, n0 = tile % column_tiles * BN;
      const int from = unit - tile_begin, count = min(end - tile_begin, per_tile) - from;
      unit += count;

      Cursor<V> cursor(channels, c.wide, from);
      T acc[WM / 16][WN / 8][4] = {};
      auto run = [&](auto& load_a, auto& load_b) {
        wait_for_launch_ahead();  // only now: where the operands are was found out beside the launch ahead
        __syncthreads();  // the tile before has been read
        for (int u = 1 - STAGES; u < count; ++u) {  // the first rounds only fill buffers
          if (u >= 0) {
            cp_async_wait<STAGES - 2>();
            __syncthreads();  // unit u is here, and unit u - 1, whose buffer is filled next, has been read
          }
          const int ahead = u + STAGES - 1;
          if (ahead < count) {
            T* to = buffers + ahead % STAGES * (A::VALUES + B::VALUES);
            if constexpr (OP == CONV_DW) load_a.load(to, s, c, from + ahead);
            else load_a.load(to, cursor, c.tall);
            if constexpr (OP == CONV || OP == CONV_DW) load_b.load(to + A::VALUES, from + ahead);
            else load_b.load(to + A::VALUES, cursor, s, c);
            cursor.next();
          }
          cp_async_commit();
          if (u < 0) continue;
          const T* now = buffers + u % STAGES * (A::VALUES + B::VALUES);
          multiply<TENSOR, A, B, WM, WN>(acc, now, now + A::VALUES, wm, wn);
        }
        if (unit == end) let_next_launch_begin();  // not before: its blocks would take the place of other branches'
      };
      if constexpr (OP == CONV_DW) {
        LoadA load_a(a, s, m0);
        LoadB load_b{b, depth, columns, n0};
        run(load_a, load_b);
      } else if constexpr (OP == CONV) {
        LoadA load_a(a, s, c, m0);
        LoadB load_b{b, depth, columns, n0};
        run(load_a, load_b);
      } else {
        LoadA load_a(a, s, c, m0);
        LoadB load_b(b, s, n0, columns);
        run(load_a, load_b);
      }

      if constexpr (TENSOR) {
#pragma unroll
        for (int i = 0; i < WM / 16; ++i)
#pragma unroll
          for (int j = 0; j < WN / 8; ++j)
#pragma unroll
            for (int e = 0; e < 4; ++e) acc[i][j][e] *= TF32_PRODUCT;
      }
      const int first = tile_begin / share, last = (tile_begin + per_tile - 1) / share;
      if (!sum_pieces(acc, first, last - first + 1, partial, counters)) continue;

      const bool pairs = columns % 2 == 0 && OP != CONV_DX_ALL && (size_t)out % (2 * sizeof(T)) == 0;
#pragma unroll
      for (int i = 0; i < WM / 8; ++i) {
        const int m = m0 + wm + i * 8 + g;
        if (m >= rows) continue;
        const int row = m / c.width, n = row / c.height, y = (row - n * c.height.by) * c.step + c.y,
                  x = (m - row * c.width.by) * c.step + c.x;
        T* to = out + (OP == CONV || OP == CONV_DW ? m * O : ((n * H + y) * W + x) * I);
#pragma unroll
        for (int j = 0; j < WN / 8; ++j) {
          const int at = n0 + wn + j * 8 + t * 2;
          const T* value = &acc[i / 2][j][i % 2 * 2];
          if (pairs) {
            if (at < columns) *reinterpret_cast<Pair*>(to + at) = {value[0], value[1]};
            continue;
          }
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const Column k = column_of<OP>(s, at + e);
            if (at + e < columns && (OP != CONV_DX_ALL || (y + k.y < H && x + k.x < W)))
              to[(k.y * W + k.x) * I + k.channel] = value[e];
          }
        }
      }
      if (OP == CONV_DW || OP == CONV_DX_ALL || !moments) continue;
      const int row_tile = row_tiles_before + m0 / BM;
      tile_moments<BM, BN, WM, WN>(acc, min(BM, rows - m0), columns, n0, wm, wn, tiles + (size_t)row_tile * 3 * columns);
      merge_moments<BN>(tiles, tile_counters + n0 / BN * counters_of(row_tiles_in_all), row_tile, row_tiles_in_all,
                        columns, n0, moments);
    }
    units_before = class_end;
    row_tiles_before += row_tiles;
  }
}
