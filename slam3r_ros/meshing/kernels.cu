// Copyright 2026 the slam3r_ros authors
// SPDX-License-Identifier: Apache-2.0
//
// The kernels of the mesher for CUDA: one thread a pixel, voxel, lattice point, cell or lattice edge.
//
// Each does what its namesake in reference.py does, in the same order of operations and in double precision, so
// that results agree bit for bit; compile without contraction to fused multiply-adds.  Threads never wait for each
// other, and where two write to one place they write the same: the tests run this file on the CPU, one thread
// after the other.  kernels_gpu.py puts the constants and tables of the Python modules in front of it.

typedef long long int64;
typedef unsigned char uint8;

__device__ int64 thread_number()
{
    return (int64)blockIdx.x * blockDim.x + threadIdx.x;
}

extern "C" __global__ void band_keys(const float *depth, const uint8 *weight, const double *camera, int64 height,
                                     int64 width, double block_size, double truncation, int64 *keys)
{
    int64 pixel = thread_number();
    if (pixel >= height * width)
        return;
    const double *T = camera + 4;
    double x = (pixel % width - camera[2]) / camera[0], y = (pixel / width - camera[3]) / camera[1];
    double along[3];
    for (int i = 0; i < 3; i++)
        along[i] = T[4 * i] * x + T[4 * i + 1] * y + T[4 * i + 2];
    for (int sample = 0; sample < BAND_SAMPLES; sample++) {
        double z = depth[pixel] + truncation * (2.0 * sample / (BAND_SAMPLES - 1) - 1.0);
        bool used = weight[pixel] > 0 && z > 0;
        int64 key = 0;
        for (int i = 0; i < 3; i++) {
            double index = floor((along[i] * z + T[4 * i + 3]) / block_size);
            used = used && fabs(index) < OFFSET - 1;
            key = used ? key << BITS | ((int64)index + OFFSET) : -1;
        }
        keys[pixel * BAND_SAMPLES + sample] = key;
    }
}

// blocks (count, 4): slot and lattice position.
extern "C" __global__ void fuse(int *sums, const int64 *blocks, int64 count, const float *depth, const uint8 *weight,
                                const uint8 *colors, const double *camera, int64 height, int64 width,
                                double voxel_size, double truncation, int64 sign, int64 max_weight, uint8 *filled,
                                uint8 *read)
{
    int64 n = thread_number() / VOXELS;
    int voxel = thread_number() % VOXELS;
    if (n >= count)
        return;
    const int64 *block = blocks + 4 * n;
    const double *T = camera + 4;
    int *total = sums + (block[0] * VOXELS + voxel) * 5;
    int i = voxel / (EDGE * EDGE), j = voxel / EDGE % EDGE, k = voxel % EDGE;
    double gx = (block[1] * EDGE + i) * voxel_size;
    double gy = (block[2] * EDGE + j) * voxel_size;
    double gz = (block[3] * EDGE + k) * voxel_size;
    double z = T[8] * gx + T[9] * gy + T[10] * gz + T[11];
    if (z > 0) {
        double x = T[0] * gx + T[1] * gy + T[2] * gz + T[3];
        double y = T[4] * gx + T[5] * gy + T[6] * gz + T[7];
        double u = floor(camera[0] * x / z + camera[2] + 0.5), v = floor(camera[1] * y / z + camera[3] + 0.5);
        if (0 <= u && u < width && 0 <= v && v < height) {
            int64 pixel = (int64)v * width + (int64)u;
            double distance = (depth[pixel] - z) / truncation;
            int share = (int)ceil(weight[pixel] * fmin((1 + distance) / FADE, 1.0));
            if (share > 0) {
                int w = (int)sign * share;
                total[0] += w;
                total[1] += w * (int)floor(fmin(distance, 1.0) * DISTANCE_STEPS + 0.5);
                for (int channel = 0; channel < 3; channel++)
                    total[2 + channel] += w * colors[3 * pixel + channel];
                bool heavy = total[0] > max_weight, gone = total[0] <= 0;
                for (int part = 0; part < 5; part++)
                    total[part] = gone ? 0 : total[part] >> heavy;
                for (int corner = 0; corner < 8; corner++)
                    if (!(corner & 1 && i > 0) && !(corner & 2 && j > 0) && !(corner & 4 && k > 0))
                        read[8 * n + corner] = 1;
            }
        }
    }
    if (total[0] > 0)
        filled[n] = 1;
}

// A corner of a block's cells, 0 to 8 along each axis: its voxel, or null where there is no block.
// block (11): slots of the block and its neighbours, and its lattice position.
__device__ const int *voxel_at(const int *sums, const int64 *block, int x, int y, int z)
{
    int64 slot = block[x / EDGE + 2 * (y / EDGE) + 4 * (z / EDGE)];
    int voxel = (x % EDGE * EDGE + y % EDGE) * EDGE + z % EDGE;
    return slot < 0 ? 0 : sums + (slot * VOXELS + voxel) * 5;
}

extern "C" __global__ void sample(const int *sums, const int64 *blocks, int64 count, int64 min_weight, double *values)
{
    int64 n = thread_number() / POINTS;
    int point = thread_number() % POINTS;
    if (n >= count)
        return;
    const int *voxel = voxel_at(sums, blocks + 11 * n, point / (SIDE * SIDE), point / SIDE % SIDE, point % SIDE);
    bool seen = voxel && voxel[0] >= min_weight;
    values[n * POINTS + point] = seen ? (double)voxel[1] / voxel[0] : nan("");
}

// The point of a cell's corner, and the lattice edge that starts there, as numbered within a block.
__device__ int point_of(int cell, int corner)
{
    int x = cell / (EDGE * EDGE) + (corner & 1);
    int y = cell / EDGE % EDGE + (corner >> 1 & 1);
    int z = cell % EDGE + (corner >> 2);
    return (x * SIDE + y) * SIDE + z;
}

__device__ int edge_of(int cell, int number)
{
    return point_of(cell, CELL_EDGES[number][0]) * 3 + CELL_EDGES[number][1];
}

extern "C" __global__ void classify(const double *values, int64 count, uint8 *cases, uint8 *triangles, uint8 *crossed)
{
    int64 n = thread_number() / VOXELS;
    int cell = thread_number() % VOXELS;
    if (n >= count)
        return;
    int which = 0;
    for (int corner = 0; corner < 8; corner++) {
        double value = values[n * POINTS + point_of(cell, corner)];
        if (isnan(value)) {
            which = 0;
            break;
        }
        which |= (value < 0) << corner;
    }
    int drawn = 0;
    for (; drawn < 5 && TRIANGLES[which][drawn][0] >= 0; drawn++)
        for (int side = 0; side < 3; side++)
            crossed[n * POINTS * 3 + edge_of(cell, TRIANGLES[which][drawn][side])] = 1;
    cases[n * VOXELS + cell] = which;
    triangles[n * VOXELS + cell] = drawn;
}

// vertex_ends (count * POINTS * 3): the running sum of `crossed`.
extern "C" __global__ void place_vertices(const int *sums, const int64 *blocks, int64 count, const double *values,
                                          const uint8 *crossed, const int *vertex_ends, double voxel_size,
                                          float *vertices, uint8 *colors)
{
    int64 edge = thread_number();
    if (edge >= count * POINTS * 3 || !crossed[edge])
        return;
    const int64 *block = blocks + edge / (POINTS * 3) * 11;
    int point = edge / 3 % POINTS, axis = edge % 3;
    int low[3] = {point / (SIDE * SIDE), point / SIDE % SIDE, point % SIDE};
    int strides[3] = {SIDE * SIDE, SIDE, 1};
    double start = values[edge / 3], end = values[edge / 3 + strides[axis]];
    double t = fmin(fmax(start / (start - end), CORNER_MARGIN), 1 - CORNER_MARGIN);
    const int *from = voxel_at(sums, block, low[0], low[1], low[2]);
    const int *to = voxel_at(sums, block, low[0] + (axis == 0), low[1] + (axis == 1), low[2] + (axis == 2));
    int64 vertex = vertex_ends[edge] - 1;
    for (int i = 0; i < 3; i++) {
        vertices[3 * vertex + i] = (block[8 + i] * EDGE + low[i] + (i == axis ? t : 0.0)) * voxel_size;
        double mixed = (1 - t) * ((double)from[2 + i] / from[0]) + t * ((double)to[2 + i] / to[0]);
        colors[3 * vertex + i] = (int)floor(fmin(fmax(mixed, 0.0), 255.0) + 0.5);
    }
}

// triangle_ends (count * 512): the running sum of what `classify` counted.
extern "C" __global__ void place_triangles(int64 count, const uint8 *cases, const int *vertex_ends,
                                           const int *triangle_ends, unsigned int *triangles)
{
    int64 n = thread_number() / VOXELS;
    int cell = thread_number() % VOXELS;
    if (n >= count)
        return;
    int64 edges = n * POINTS * 3;
    int first = n == 0 ? 0 : vertex_ends[edges - 1];
    int64 start = n == 0 && cell == 0 ? 0 : triangle_ends[n * VOXELS + cell - 1];
    int drawn = triangle_ends[n * VOXELS + cell] - start;
    for (int i = 0; i < 3 * drawn; i++) {
        int edge = edge_of(cell, TRIANGLES[cases[n * VOXELS + cell]][i / 3][i % 3]);
        triangles[3 * start + i] = vertex_ends[edges + edge] - 1 - first;
    }
}
