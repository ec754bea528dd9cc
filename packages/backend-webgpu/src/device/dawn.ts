/** WebGPU in Node: the npm package `webgpu`, which is Dawn, the implementation that Chromium uses. */
import { DeviceError } from '@tilegrad/core'

/** What only Dawn in Node understands; browsers ignore it. */
export interface DawnOptions {
  /** Dawn's toggles by name, over our defaults; its Toggles.cpp lists them. */
  readonly toggles?: Readonly<Record<string, boolean>>
  /** The graphics interface to use, as 'vulkan', 'd3d12' or 'metal'; 'null' compiles everything and runs nothing. */
  readonly backend?: string
  /** Part of the adapter's name, to choose one of several; the error for a wrong one lists them. */
  readonly adapter?: string
}

const TOGGLES: Readonly<Record<string, boolean>> = {
  // Subgroup matrices count as unsafe because their definition may change, not because they reach other memory.
  allow_unsafe_apis: true,
  // Without it Dawn hides shader-f16 on NVIDIA, and every f16 matrix with it.
  vulkan_enable_f16_on_nvidia: true,
  // Bounds checks on every access protect users from the shaders of web pages. Ours check the indices that come from
  // data themselves, and users bring none. On one H100 they cost AdamW 40 % of its speed, products up to 15 %. On one H200,
  // in float16: products 2 %, attention 2 to 6, a mixed training step 2 to 4, decoding 13 to 20; products of float32 11.
  disable_robustness: true,
  // Times rounded to 100 µs protect web pages from each other; here nobody is to be protected.
  timestamp_quantization: false,
}

/**
 * Toggles for SwiftShader, below what users choose. Told to clear workgroup memory by itself it compiles a store for each
 * number, which takes longer than the kernel; Dawn's own code is a loop.
 */
export const SOFTWARE_TOGGLES: Readonly<Record<string, boolean>> = {
  use_vulkan_zero_initialize_workgroup_memory_extension: false,
}

/**
 * Dawn's instances by their options. They are never let go: an instance that is collected while a device, a buffer or
 * a promise made from it lives takes the process down. They keep nothing running.
 */
const instances = new Map<string, GPU>()

/** The entry point of WebGPU, with `requestAdapter`; throws a DeviceError where the package is missing or broken. */
export async function createDawn(options: DawnOptions): Promise<GPU> {
  const flags = dawnFlags(options)
  const key = flags.join(' ')
  let instance = instances.get(key)
  if (!instance) {
    instance = (await loadDawn()).create(flags)
    instances.set(key, instance)
  }
  return instance
}

function dawnFlags({ toggles, backend, adapter }: DawnOptions): string[] {
  const all = Object.entries({ ...TOGGLES, ...toggles })
  const names = (on: boolean) => all.filter(([, value]) => value === on).map(([name]) => name)
  const flags = []
  if (names(true).length) flags.push(`enable-dawn-features=${names(true)}`)
  if (names(false).length) flags.push(`disable-dawn-features=${names(false)}`)
  if (backend !== undefined) flags.push(`backend=${backend}`)
  if (adapter !== undefined) flags.push(`adapter=${adapter}`)
  return flags
}

async function loadDawn(): Promise<typeof import('webgpu')> {
  // Not a literal, and marked: bundles for browsers must not contain Dawn.
  const name = 'webgpu'
  try {
    return await import(/* @vite-ignore */ /* webpackIgnore: true */ name)
  } catch (cause) {
    const { code, message } = cause as NodeJS.ErrnoException
    const why =
      code === 'ERR_MODULE_NOT_FOUND'
        ? `the package '${name}' is not installed; WebGPU in Node needs it: npm i ${name}`
        : `the package '${name}' does not load on ${process.platform}-${process.arch} (${message})`
    throw new DeviceError(`openGpu: ${why}`, { cause })
  }
}
