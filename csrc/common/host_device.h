// What lets one function be compiled for a CPU and for a GPU.
#pragma once

#ifndef MEDSORA_HOST_DEVICE
#if defined(__CUDACC__)
#define MEDSORA_HOST_DEVICE __host__ __device__ __forceinline__
#elif defined(__GNUC__)
#define MEDSORA_HOST_DEVICE inline __attribute__((always_inline))
#else
#define MEDSORA_HOST_DEVICE inline
#endif
#endif
#if defined(__CUDA_ARCH__) || defined(__clang__)
#define MEDSORA_UNROLL _Pragma("unroll")
#elif defined(__GNUC__) && !defined(__CUDACC__)
#define MEDSORA_UNROLL _Pragma("GCC unroll 16")
#else
#define MEDSORA_UNROLL
#endif
#if defined(__CUDACC__)
#define MEDSORA_HOST_DEVICE_CALL __host__ __device__
#else
#define MEDSORA_HOST_DEVICE_CALL
#endif
