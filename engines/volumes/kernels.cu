// A volume cut into windows, and the logits of windows merged into labels, on the GPU where both lie.
//
// Compiled with these constants: LOGIT and SUM (__half or float) are the types of the network's logits and of what is
// kept between launches, CLASSES how many there are, VECTOR how many neighbours along a row a thread takes.
//
// Every voxel has one owner in a launch, which gathers what the launch's windows say of it: no two threads write to
// one address, whatever overlaps. Every offset that grows with a volume has 64 bits.

#include <cuda_fp16.h>

// Windows along one axis: at 0, step, 2 step, ... and the last flush with the end; a lone one may begin before 0.
// The number of a window is the sum over the axes of its place times `stride`. Accumulators are kept for `kept` voxels,
// a coordinate's at its remainder.
struct Axis {
    int size, side, count, step, last, stride, kept;
};

struct Plan {
    Axis z, y, x;
    int begin, end;  // the windows of this launch
};

struct Cut {
    Plan plan;
    const signed char *volume;  // [D,H,W]
    signed char *windows;       // [N,d,h,w], or [N,d,h,w,32]
    int pad;                    // what lies beyond the volume
};

struct Merge {
    Plan plan;
    const LOGIT *logits;   // [N,C,d,h,w]
    const float *weights;  // of a window's columns, rows and planes: [w+h+d]
    SUM *sums;             // [C, kept of z, of y, of x]; need not be cleared
    signed char *labels;   // [D,H,W]
    float least;           // no weight is below it
};

struct Triple {
    int z, y, x;
};

struct Span {
    int first, last;
};

template <typename T>
struct alignas(sizeof(T) * VECTOR < 16 ? sizeof(T) * VECTOR : 16) Pack {
    T at[VECTOR];
};

static __device__ int start(const Axis &axis, int place) {
    return place == axis.count - 1 ? axis.last : place * axis.step;
}

static __device__ int start_of(const Axis &axis, int window) {
    return start(axis, window / axis.stride % axis.count);
}

// The windows that hold a coordinate.
static __device__ Span holders(const Axis &axis, int at) {
    const int past = at < axis.side ? 0 : (at - axis.side) / axis.step + 1;
    return {past < axis.count ? past : axis.count - 1, at < axis.last ? at / axis.step : axis.count - 1};
}

static __device__ bool inside(const Axis &axis, int at) {
    return at >= 0 && at < axis.size;
}

static __device__ int number(const Plan &plan, int z, int y, int x) {
    return z * plan.z.stride + y * plan.y.stride + x * plan.x.stride;
}

static __device__ Triple corner(const Plan &plan, int window) {
    return {start_of(plan.z, window), start_of(plan.y, window), start_of(plan.x, window)};
}

// Place in a window of a thread's first voxel: columns along x, rows along y, planes along the grid.
static __device__ Triple place() {
    return {static_cast<int>(blockIdx.y), static_cast<int>(blockIdx.x * blockDim.y + threadIdx.y),
            static_cast<int>(threadIdx.x)};
}

static __device__ signed char voxel(const Cut &job, int z, int y, int x) {
    const Plan &plan = job.plan;
    if (!inside(plan.z, z) || !inside(plan.y, y) || !inside(plan.x, x)) return static_cast<signed char>(job.pad);
    return job.volume[(static_cast<long long>(z) * plan.y.size + y) * plan.x.size + x];
}

// Cut windows into INT8, linear. Rows of the volume and starts of windows are multiples of VECTOR.
extern "C" __global__ void cut(Cut job) {
    const Plan &plan = job.plan;
    const Triple at = place(), from = corner(plan, plan.begin + blockIdx.z);
    if (at.y >= plan.y.side) return;
    const long long row = (static_cast<long long>(blockIdx.z) * plan.z.side + at.z) * plan.y.side + at.y;
    const int z = from.z + at.z, y = from.y + at.y;
    const bool filled = inside(plan.z, z) && inside(plan.y, y);
    for (int column = at.x * VECTOR; column < plan.x.side; column += blockDim.x * VECTOR) {
        const int x = from.x + column;
        Pack<signed char> values;
        if (filled && inside(plan.x, x)) {
            const long long offset = (static_cast<long long>(z) * plan.y.size + y) * plan.x.size + x;
            values = *reinterpret_cast<const Pack<signed char> *>(job.volume + offset);
        } else {
            for (signed char &value : values.at) value = static_cast<signed char>(job.pad);
        }
        *reinterpret_cast<Pack<signed char> *>(job.windows + row * plan.x.side + column) = values;
    }
}

// Cut windows into INT8 in CDHW32: a voxel is the first of 32 bytes, the rest are 0. Two threads write one voxel, so
// that whole sectors of memory are written and nothing has to be cleared before.
extern "C" __global__ void cut32(Cut job) {
    const Plan &plan = job.plan;
    const Triple at = place(), from = corner(plan, plan.begin + blockIdx.z);
    if (at.y >= plan.y.side) return;
    const long long row = (static_cast<long long>(blockIdx.z) * plan.z.side + at.z) * plan.y.side + at.y;
    for (int half = at.x; half < 2 * plan.x.side; half += blockDim.x) {
        uint4 bytes = {0, 0, 0, 0};
        if (half % 2 == 0) {
            bytes.x = static_cast<unsigned char>(voxel(job, from.z + at.z, from.y + at.y, from.x + half / 2));
        }
        reinterpret_cast<uint4 *>(job.windows)[row * 2 * plan.x.side + half] = bytes;
    }
}

// One voxel or VECTOR neighbours, which the same windows hold.
struct Voxels {
    int z, y, x;
    Span planes, rows, columns;  // of windows
};

// The first of the launch's windows that holds the voxels.
static __device__ int owner(const Plan &plan, const Voxels &at) {
    int first = plan.end;
    for (int z = at.planes.first; z <= at.planes.last; ++z)
        for (int y = at.rows.first; y <= at.rows.last; ++y)
            for (int x = at.columns.first; x <= at.columns.last; ++x) {
                const int window = number(plan, z, y, x);
                if (window >= plan.begin && window < first) first = window;
            }
    return first;
}

// Add what one window says, weighed.
static __device__ void add(const Merge &job, const Triple &from, const Voxels &at, int slot, float (*sums)[VECTOR]) {
    const Plan &plan = job.plan;
    const int z = at.z - from.z, y = at.y - from.y, x = at.x - from.x;
    const auto columns = *reinterpret_cast<const Pack<float> *>(job.weights + x);
    const float weight = job.weights[plan.x.side + y] * job.weights[plan.x.side + plan.y.side + z];
    const long long plane = static_cast<long long>(plan.y.side) * plan.x.side;
    const LOGIT *logits = job.logits + (static_cast<long long>(slot) * CLASSES * plan.z.side + z) * plane;
    logits += static_cast<long long>(y) * plan.x.side + x;
#pragma unroll
    for (int kind = 0; kind < CLASSES; ++kind) {
        const auto values = *reinterpret_cast<const Pack<LOGIT> *>(logits + kind * plan.z.side * plane);
        for (int i = 0; i < VECTOR; ++i) {
            sums[kind][i] += fmaxf(weight * columns.at[i], job.least) * static_cast<float>(values.at[i]);
        }
    }
}

// The largest class, the first of equals; -1 where a sum is no number.
static __device__ signed char largest(const float (*sums)[VECTOR], int i) {
    float most = sums[0][i];
    int best = most == most ? 0 : -1;
#pragma unroll
    for (int kind = 1; kind < CLASSES; ++kind) {
        const float sum = sums[kind][i];
        if (best >= 0 && !(sum <= most)) {
            best = sum == sum ? kind : -1;
            most = sum;
        }
    }
    return static_cast<signed char>(best);
}

// Gather what the launch's windows say of the voxels; it becomes their labels, or is kept for the next launch.
static __device__ void merge_voxels(const Merge &job, const Voxels &at) {
    const Plan &plan = job.plan;
    const long long kind_size = static_cast<long long>(plan.z.kept) * plan.y.kept * plan.x.kept;
    const long long row = static_cast<long long>(at.z % plan.z.kept) * plan.y.kept + at.y % plan.y.kept;
    SUM *kept = job.sums + row * plan.x.kept + at.x % plan.x.kept;
    float sums[CLASSES][VECTOR] = {};
    if (number(plan, at.planes.first, at.rows.first, at.columns.first) < plan.begin) {
#pragma unroll
        for (int kind = 0; kind < CLASSES; ++kind) {
            const auto values = *reinterpret_cast<const Pack<SUM> *>(kept + kind * kind_size);
            for (int i = 0; i < VECTOR; ++i) sums[kind][i] = static_cast<float>(values.at[i]);
        }
    }
    for (int z = at.planes.first; z <= at.planes.last; ++z)
        for (int y = at.rows.first; y <= at.rows.last; ++y)
            for (int x = at.columns.first; x <= at.columns.last; ++x) {
                const int window = number(plan, z, y, x);
                if (window < plan.begin || window >= plan.end) continue;
                add(job, {start(plan.z, z), start(plan.y, y), start(plan.x, x)}, at, window - plan.begin, sums);
            }
    if (number(plan, at.planes.last, at.rows.last, at.columns.last) < plan.end) {
        Pack<signed char> labels;
        for (int i = 0; i < VECTOR; ++i) labels.at[i] = largest(sums, i);
        const long long offset = (static_cast<long long>(at.z) * plan.y.size + at.y) * plan.x.size + at.x;
        *reinterpret_cast<Pack<signed char> *>(job.labels + offset) = labels;
        return;
    }
#pragma unroll
    for (int kind = 0; kind < CLASSES; ++kind) {
        Pack<SUM> values;
        for (int i = 0; i < VECTOR; ++i) values.at[i] = static_cast<SUM>(sums[kind][i]);
        *reinterpret_cast<Pack<SUM> *>(kept + kind * kind_size) = values;
    }
}

// Weigh the logits of a launch's windows and add them up; the arg-max of what no later window reaches becomes a label.
extern "C" __global__ void merge(Merge job) {
    const Plan &plan = job.plan;
    const int window = plan.begin + blockIdx.z;
    const Triple at = place(), from = corner(plan, window);
    const int z = from.z + at.z, y = from.y + at.y;
    if (at.y >= plan.y.side || !inside(plan.z, z) || !inside(plan.y, y)) return;
    for (int column = at.x * VECTOR; column < plan.x.side; column += blockDim.x * VECTOR) {
        const int x = from.x + column;
        if (!inside(plan.x, x)) continue;
        const Voxels voxels = {z, y, x, holders(plan.z, z), holders(plan.y, y), holders(plan.x, x)};
        if (owner(plan, voxels) == window) merge_voxels(job, voxels);
    }
}
