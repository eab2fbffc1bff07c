// Runs the kernels thread by thread, first to last or last to first: where two threads met, the orders would differ.
// Blocks are those of all windows but the first `skipped`.
#include KERNELS

template <typename Job>
static void launch(void (*kernel)(Job), const Job &job, const unsigned *grid, const unsigned *block, int skipped,
                   int backwards) {
    const dim3 blocks = {grid[0], grid[1], grid[2]};
    blockDim = {block[0], block[1], block[2]};
    const long long threads = 1LL * blockDim.x * blockDim.y * blockDim.z;
    const long long window = threads * blocks.x * blocks.y, all = window * blocks.z, first = window * skipped;
    for (long long i = first; i < all; ++i) {
        const long long thread = backwards ? all - 1 - (i - first) : i;
        const unsigned in = thread % threads, at = thread / threads;
        threadIdx = {in % blockDim.x, in / blockDim.x % blockDim.y, in / blockDim.x / blockDim.y};
        blockIdx = {at % blocks.x, at / blocks.x % blocks.y, at / blocks.x / blocks.y};
        kernel(job);
    }
}

extern "C" {
unsigned size_of_cut() { return sizeof(Cut); }
unsigned size_of_merge() { return sizeof(Merge); }
void launch_cut(const Cut *job, const unsigned *grid, const unsigned *block, int skipped, int backwards) {
    launch(cut, *job, grid, block, skipped, backwards);
}
void launch_cut32(const Cut *job, const unsigned *grid, const unsigned *block, int skipped, int backwards) {
    launch(cut32, *job, grid, block, skipped, backwards);
}
void launch_merge(const Merge *job, const unsigned *grid, const unsigned *block, int skipped, int backwards) {
    launch(merge, *job, grid, block, skipped, backwards);
}
}
