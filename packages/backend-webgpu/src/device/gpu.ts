/**
 * Opens a GPU: npm `webgpu` (Dawn) in Node, `navigator.gpu` elsewhere, with every limit the adapter offers and the
 * features that kernels can use.
 */
import { DeviceError, expectOptions, type Names, ValueError } from '@tilegrad/core'
import { createDawn, type DawnOptions, SOFTWARE_TOGGLES } from './dawn.ts'
import { type Matrices, matricesOf, matrixForms } from './matrices.ts'

/** Features that kernels make use of, asked for where the adapter has them. */
const USEFUL: readonly string[] = [
  'shader-f16',
  'subgroups',
  'subgroup-size-control',
  'timestamp-query',
  ...matrixForms.map(({ feature }) => feature),
]

/** Which GPU to open and what to ask it for. */
export interface GpuOptions extends DawnOptions {
  /** On machines with two GPUs: the fast one (default) or the thrifty one. */
  readonly powerPreference?: 'high-performance' | 'low-power'
  /**
   * 'all' (default): every feature kernels can use that the adapter offers; 'default': none; or these, all of which
   * must be there.
   */
  readonly features?: 'default' | 'all' | readonly string[]
  /** 'all' (default): every limit as high as the adapter offers; 'default': those each WebGPU device has. */
  readonly limits?: 'default' | 'all'
  /**
   * Told of what no call can throw: errors that no error scope caught, as mistakes in calls and memory running out, and
   * that a GPU could not be measured. Default: console.error.
   */
  readonly onError?: (message: string) => void
}

/** @internal What `openGpu` knows. */
export const GPU: Names<GpuOptions> = {
  toggles: 1,
  backend: 1,
  adapter: 1,
  powerPreference: 1,
  features: 1,
  limits: 1,
  onError: 1,
}

/** Why a device is gone: 'destroyed' by `close()` or by its owner, or 'unknown', as when the driver was reset. */
export interface GpuLost {
  /** Who ended it. */
  readonly reason: 'destroyed' | 'unknown'
  /** What the platform says about it. */
  readonly message: string
}

/** An open GPU. */
export interface Gpu {
  /** The device itself, for programs that use WebGPU beside tilegrad. */
  readonly device: GPUDevice
  /** Its name, as far as the platform tells. */
  readonly adapterName: string
  /** SwiftShader, by whatever name: it takes minutes to compile kernels that a GPU compiles at once. */
  readonly isSoftware: boolean
  /** What the platform tells of the adapter. */
  readonly info: GPUAdapterInfo
  /** The features that the device has. */
  readonly features: ReadonlySet<string>
  /** The limits of the device. */
  readonly limits: GPUSupportedLimits
  /** Times can be measured on the GPU: 'timestamp-query' is there. */
  readonly timestamps: boolean
  /** Bytes of `var<immediate>` that `setImmediates` can set for a dispatch; 0 where there is no such thing. */
  readonly immediates: number
  /** @internal What it takes to multiply matrices of float16 on units of their own; null where there are none. */
  readonly matrices: Matrices | null
  /** Runs in Node, through npm `webgpu`. */
  readonly isNode: boolean
  /** Settles once, when the device is gone; nothing else can be done with it then, but another can be opened. */
  readonly lost: Promise<GpuLost>
  /** Why the device is gone, or undefined while it works. */
  readonly lostInfo: GpuLost | undefined
  /** Told of what no call can throw, as `GpuOptions` says. */
  readonly onError: (message: string) => void
  /** Throws a DeviceError once the device is gone. */
  check(operation: string): void
  /**
   * A read that the device will answer: `pending`'s value, or a DeviceError if the device is lost before, even if
   * `pending` then never settles.
   */
  answer<T>(operation: string, pending: Promise<T>): Promise<T>
  /** Frees the device and all its memory. Not needed at the end of a program. */
  close(): void
}

/**
 * Opens a GPU.
 *
 * In Node the package `webgpu` must be installed (`npm i webgpu`); in a browser WebGPU must be enabled. An open GPU
 * does not keep Node running.
 *
 * @throws DeviceError when there is none, saying what to do; ValueError for a feature the adapter lacks
 * @example
 * const gpu = await openGpu()
 * console.log(gpu.adapterName, gpu.limits.maxBufferSize)
 * gpu.close()
 */
export async function openGpu(options: GpuOptions = {}): Promise<Gpu> {
  expectOptions('openGpu', options, GPU)
  const offered = globalThis.navigator?.gpu as GPU | undefined
  const isNode = !offered && typeof globalThis.process?.versions?.node === 'string'
  let api = offered ?? (isNode ? await createDawn(options) : undefined)
  if (!api) throw new DeviceError(`openGpu: ${noApi()}`)

  let adapter = await requestAdapter(api, options)
  if (adapter && isNode && isSwiftShader(adapter.info)) {
    // Toggles belong to an instance, which must be there to know the adapter.
    api = await createDawn({ ...options, toggles: { ...SOFTWARE_TOGGLES, ...options.toggles } })
    adapter = await requestAdapter(api, options)
  }
  if (!adapter) throw new DeviceError(`openGpu: ${isNode ? NO_ADAPTER_NODE : NO_ADAPTER_BROWSER}`)

  const requiredFeatures = chooseFeatures(adapter.features, options.features ?? 'all')
  const requiredLimits = (options.limits ?? 'all') === 'all' ? allLimits(adapter.limits) : {}
  let device: GPUDevice
  try {
    device = await adapter.requestDevice({ requiredFeatures, requiredLimits })
  } catch (cause) {
    const name = nameOf(adapter.info)
    throw new DeviceError(`openGpu: ${name} gave no device: ${messageOf(cause)}`, { cause })
  }
  const matrices = await matricesOf(device, adapter.info)
  return new OpenGpu(device, adapter.info, immediateBytes(api, device), matrices, isNode, options.onError)
}

async function requestAdapter(api: GPU, { powerPreference }: GpuOptions): Promise<GPUAdapter | null> {
  try {
    return await api.requestAdapter({ powerPreference: powerPreference ?? 'high-performance' })
  } catch (cause) {
    // Dawn lists what there is instead.
    throw new DeviceError(`openGpu: ${messageOf(cause)}`, { cause })
  }
}

class OpenGpu implements Gpu {
  readonly device: GPUDevice
  readonly adapterName: string
  readonly isSoftware: boolean
  readonly info: GPUAdapterInfo
  readonly features: ReadonlySet<string>
  readonly limits: GPUSupportedLimits
  readonly timestamps: boolean
  readonly immediates: number
  readonly matrices: Matrices | null
  readonly isNode: boolean
  readonly lost: Promise<GpuLost>
  readonly onError: (message: string) => void
  lostInfo: GpuLost | undefined
  /** What to tell the reads under way. A race against `lost` would leave a reaction behind on it per read. */
  readonly #pending = new Set<() => void>()

  constructor(
    device: GPUDevice,
    info: GPUAdapterInfo,
    immediates: number,
    matrices: Matrices | null,
    isNode: boolean,
    onError: (message: string) => void = (message) => console.error(`tilegrad: WebGPU: ${message}`),
  ) {
    this.device = device
    this.adapterName = nameOf(info)
    this.isSoftware = isSwiftShader(info)
    this.info = info
    this.features = device.features as ReadonlySet<string>
    // A copy: the device's own are asked for by a call each.
    this.limits = allLimits(device.limits) as unknown as GPUSupportedLimits
    this.timestamps = this.features.has('timestamp-query')
    this.immediates = immediates
    this.matrices = matrices
    this.isNode = isNode
    this.onError = onError
    device.addEventListener('uncapturederror', (event) => {
      // Dawn and browsers would print it as well.
      event.preventDefault()
      onError(event.error.message.trim())
    })
    this.lost = device.lost.then(({ reason, message }) =>
      this.#lose({ reason: reason === 'destroyed' ? 'destroyed' : 'unknown', message }),
    )
  }

  #lose(info: GpuLost): GpuLost {
    this.lostInfo ??= info
    for (const tell of this.#pending) tell()
    this.#pending.clear()
    return this.lostInfo
  }

  #lostError(operation: string): DeviceError {
    const { reason, message } = this.lostInfo!
    const why = reason === 'destroyed' ? 'was closed' : `was lost (${message || 'no reason given'})`
    return new DeviceError(
      `${operation}: the GPU ${why}; its tensors are gone. Open another one (await setDevice('webgpu')) and upload them again`,
    )
  }

  check(operation: string): void {
    if (this.lostInfo) throw this.#lostError(operation)
  }

  answer<T>(operation: string, pending: Promise<T>): Promise<T> {
    return new Promise((resolve, reject) => {
      const tell = () => reject(this.#lostError(operation))
      if (this.lostInfo) tell()
      else this.#pending.add(tell)
      pending.then(
        (value) => {
          this.#pending.delete(tell)
          resolve(value)
        },
        (cause) =>
          // The failure may be told before the loss that caused it.
          setTimeout(() => {
            this.#pending.delete(tell)
            reject(this.lostInfo ? this.#lostError(operation) : cause)
          }),
      )
    })
  }

  close(): void {
    this.#lose({ reason: 'destroyed', message: 'closed' })
    this.device.destroy()
  }
}

function chooseFeatures(
  offered: ReadonlySet<string>,
  wanted: 'default' | 'all' | readonly string[],
): GPUFeatureName[] {
  if (wanted === 'default') return []
  const missing = wanted === 'all' ? [] : wanted.filter((name) => !offered.has(name))
  if (missing.length)
    throw new ValueError(
      `openGpu: the adapter lacks ${missing.join(', ')}; it has ${[...offered].join(', ')}`,
    )
  return (wanted === 'all' ? USEFUL.filter((name) => offered.has(name)) : wanted) as GPUFeatureName[]
}

function allLimits(limits: GPUSupportedLimits): Record<string, number> {
  const all: Record<string, number> = {}
  // The limits are getters of the prototype.
  for (const name in limits) {
    const value = (limits as unknown as Record<string, unknown>)[name]
    if (typeof value === 'number') all[name] = value
  }
  return all
}

/** Immediates are young: the language, the encoder and the device must all know them. */
function immediateBytes(api: GPU, device: GPUDevice): number {
  if (!api.wgslLanguageFeatures?.has('immediate_address_space')) return 0
  return device.limits.maxImmediateSize ?? 0
}

const isSwiftShader = ({ architecture, description }: GPUAdapterInfo): boolean =>
  /swiftshader/i.test(`${architecture} ${description}`)

/** What Dawn calls description is the driver's. Names that were cut off end with a hyphen. */
const nameOf = ({ description, device, architecture, vendor }: GPUAdapterInfo): string =>
  device.replace(/-+$/, '') ||
  description ||
  [vendor, architecture].filter(Boolean).join(' ') ||
  'unnamed GPU'

const messageOf = (cause: unknown): string => (cause instanceof Error ? cause.message : String(cause)).trim()

const NO_ADAPTER_NODE =
  'there is no GPU that WebGPU can use. Install its driver: on Linux one with Vulkan (nvidia-driver, or ' +
  'mesa-vulkan-drivers) and the loader (libvulkan1); macOS and Windows bring theirs. Without a GPU, ' +
  'a software adapter such as SwiftShader serves for trying out: its libvk_swiftshader.so, named libvulkan.so.1 in a ' +
  'folder of LD_LIBRARY_PATH'

const NO_ADAPTER_BROWSER =
  'this browser knows WebGPU but offers no GPU. It may have blocked the driver (chrome://gpu tells): try the flags ' +
  '--enable-unsafe-webgpu and, on Linux, --enable-features=Vulkan; without a GPU, ' +
  '--use-webgpu-adapter=swiftshader runs in software'

function noApi(): string {
  if (globalThis.isSecureContext === false)
    return 'WebGPU is only there in secure contexts: serve the page over https or from localhost'
  return (
    'no WebGPU here: update the browser (Chrome or Edge 113, Safari 26, Firefox 141 or newer), or enable it, in ' +
    'Chrome with chrome://flags/#enable-unsafe-webgpu, in Firefox with dom.webgpu.enabled in about:config'
  )
}
