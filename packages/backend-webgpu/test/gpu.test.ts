/** Opening a GPU, what it says about itself, its errors and its loss. */
import { DeviceError, ValueError } from '@tilegrad/core'
import { afterEach, expect, test, vi } from 'vitest'
import { type Gpu, type GpuOptions, openGpu } from '../src/device/gpu.ts'

const opened: Gpu[] = []
async function open(options?: GpuOptions): Promise<Gpu> {
  const gpu = await openGpu(options)
  opened.push(gpu)
  return gpu
}
afterEach(() => {
  for (const gpu of opened.splice(0)) gpu.close()
  vi.unstubAllGlobals()
})

// Only to end what hangs: a machine may be busy with other things.
const patience = { timeout: 60_000 }

const [MAP_READ, COPY_DST, STORAGE] = [0x1, 0x8, 0x80]

test('an open GPU names itself and offers more than the default limits', async () => {
  const gpu = await open()
  // Not its driver's name.
  expect(gpu.adapterName).toMatch(/^swiftshader-device/)
  expect(gpu.isNode).toBe(true)
  expect(gpu.lostInfo).toBeUndefined()
  // The defaults of the specification.
  expect(gpu.limits.maxComputeWorkgroupStorageSize).toBeGreaterThan(16384)
  expect(gpu.limits.maxStorageBufferBindingSize).toBeGreaterThan(2 ** 27)
  expect(gpu.timestamps).toBe(gpu.features.has('timestamp-query'))
  expect(gpu.immediates).toBeGreaterThanOrEqual(64)
})

test('features and limits are asked for as told', async () => {
  const plain = await open({ features: 'default', limits: 'default' })
  expect(plain.features.has('subgroups')).toBe(false)
  expect(plain.timestamps).toBe(false)
  expect(plain.limits.maxComputeWorkgroupStorageSize).toBe(16384)
  const some = await open({ features: ['timestamp-query'] })
  expect(some.timestamps).toBe(true)
  expect(some.features.has('subgroups')).toBe(false)
  const wrong = openGpu({ features: ['timestamp-query', 'teleport'] })
  await expect(wrong).rejects.toThrow(ValueError)
  await expect(wrong).rejects.toThrow('openGpu: the adapter lacks teleport; it has')
  const misspelt: object = { feature: 'all' }
  await expect(openGpu(misspelt)).rejects.toThrow("did you mean 'features'?")
})

test('immediates reach the shader', async () => {
  const gpu = await open()
  const { device } = gpu
  const module = device.createShaderModule({
    code: `
      var<immediate> line: vec2u;
      @group(0) @binding(0) var<storage, read_write> y: array<u32>;
      @compute @workgroup_size(4) fn main(@builtin(global_invocation_id) id: vec3u) {
        y[id.x] = line.x * id.x + line.y;
      }`,
  })
  const layout = device.createBindGroupLayout({
    entries: [{ binding: 0, visibility: 4, buffer: { type: 'storage' } }],
  })
  const pipeline = device.createComputePipeline({
    layout: device.createPipelineLayout({ bindGroupLayouts: [layout], immediateSize: 8 }),
    compute: { module },
  })
  const [y, read] = [STORAGE | 0x4, MAP_READ | COPY_DST].map((usage) =>
    device.createBuffer({ size: 16, usage }),
  )
  const encoder = device.createCommandEncoder()
  const pass = encoder.beginComputePass()
  pass.setPipeline(pipeline)
  pass.setBindGroup(0, device.createBindGroup({ layout, entries: [{ binding: 0, resource: { buffer: y } }] }))
  pass.setImmediates(0, new Uint32Array([10, 7]))
  pass.dispatchWorkgroups(1)
  pass.end()
  encoder.copyBufferToBuffer(y, 0, read, 0, 16)
  device.queue.submit([encoder.finish()])
  await gpu.answer('read', read.mapAsync(1))
  expect([...new Uint32Array(read.getMappedRange())]).toEqual([7, 17, 27, 37])
})

test('the null backend compiles f16 and subgroup matrices without a GPU, and reports what does not compile', async () => {
  const errors: string[] = []
  const gpu = await open({ backend: 'null', onError: (message) => errors.push(message) })
  for (const name of ['shader-f16', 'subgroups', 'chromium-experimental-subgroup-matrix'])
    expect(gpu.features).toContain(name)
  const compile = (code: string) => gpu.device.createShaderModule({ code }).getCompilationInfo()
  const good = await compile(`
    enable f16; enable chromium_experimental_subgroup_matrix;
    @group(0) @binding(0) var<storage, read_write> y: array<f32>;
    alias O = subgroup_matrix_result<f32, 16, 16>;
    @compute @workgroup_size(32) fn main() { subgroupMatrixStore<row_major>(&y, 0, O(), 16u); }`)
  expect(good.messages.filter(({ type }) => type === 'error')).toEqual([])
  expect(errors).toEqual([])
  const bad = await compile('fn main() { let x: f32 = 1u; }')
  expect(bad.messages.map(({ type }) => type)).toEqual(['error'])
  await vi.waitFor(() => expect(errors).toHaveLength(1), patience)
})

test('a toggle can be set over the default', async () => {
  const safe = await open({ backend: 'null', toggles: { allow_unsafe_apis: false } })
  expect(safe.features.has('chromium-experimental-subgroup-matrix')).toBe(false)
})

test('errors that nobody caught go to onError', async () => {
  const errors: string[] = []
  const gpu = await open({ onError: (message) => errors.push(message) })
  gpu.device.createBuffer({ size: 64, usage: MAP_READ | STORAGE })
  gpu.device.createBuffer({ size: gpu.limits.maxBufferSize + 4, usage: STORAGE })
  await vi.waitFor(() => expect(errors).toHaveLength(2), patience)
  expect(errors[0]).toContain('MapRead')
  expect(errors[1]).toContain('exceeds the max buffer size')
})

test('errors go to the console when there is no onError', async () => {
  const log = vi.spyOn(console, 'error').mockImplementation(() => {})
  const gpu = await open()
  gpu.device.createBuffer({ size: 64, usage: MAP_READ | STORAGE })
  await vi.waitFor(() => expect(log).toHaveBeenCalledOnce(), patience)
  expect(log.mock.calls[0][0]).toMatch(/^tilegrad: WebGPU: .*MapRead/)
  log.mockRestore()
})

test('a wrong backend or adapter is answered with those there are', async () => {
  await expect(openGpu({ backend: 'abacus' })).rejects.toThrow(/^openGpu: .*abacus.*vulkan/s)
  const wrong = openGpu({ adapter: 'abacus' })
  await expect(wrong).rejects.toThrow(DeviceError)
  await expect(wrong).rejects.toThrow('Available adapters')
})

test('closing settles lost, fails the reads under way and every later one, and another GPU can be opened', async () => {
  const gpu = await open()
  const buffer = gpu.device.createBuffer({ size: 64, usage: MAP_READ | COPY_DST })
  const pending = [gpu.answer('item', buffer.mapAsync(1)), gpu.answer('data', new Promise(() => {}))]
  gpu.check('add')
  gpu.close()
  for (const read of pending) await expect(read).rejects.toThrow(DeviceError)
  await expect(pending[1]).rejects.toThrow('data: the GPU was closed; its tensors are gone.')
  expect(await gpu.lost).toEqual({ reason: 'destroyed', message: 'closed' })
  expect(gpu.lostInfo?.reason).toBe('destroyed')
  expect(() => gpu.check('add')).toThrow('add: the GPU was closed')
  await expect(gpu.answer('data', Promise.resolve(1))).rejects.toThrow(DeviceError)
  gpu.close()
  const next = await open()
  const other = next.device.createBuffer({ size: 64, usage: MAP_READ | COPY_DST })
  await next.answer('item', other.mapAsync(1))
  expect(next.lostInfo).toBeUndefined()
})

test('a device that goes away by itself is noticed, too', async () => {
  const gpu = await open()
  const buffer = gpu.device.createBuffer({ size: 64, usage: MAP_READ | COPY_DST })
  const pending = [gpu.answer('item', buffer.mapAsync(1)), gpu.answer('data', new Promise(() => {}))]
  gpu.device.destroy()
  for (const read of pending) await expect(read).rejects.toThrow(/^(item|data): the GPU was closed/)
  expect((await gpu.lost).reason).toBe('destroyed')
})

test('a read that fails while the device lives keeps its own error', async () => {
  const gpu = await open()
  const buffer = gpu.device.createBuffer({ size: 64, usage: MAP_READ | COPY_DST })
  const read = gpu.answer('item', buffer.mapAsync(1))
  buffer.destroy()
  await expect(read).rejects.toMatchObject({ name: 'AbortError' })
})

/** A `navigator.gpu` as in a browser. */
function browser(gpu: unknown, isSecureContext = true) {
  vi.stubGlobal('navigator', { gpu })
  vi.stubGlobal('process', undefined)
  vi.stubGlobal('isSecureContext', isSecureContext)
}

test.each([
  ['no WebGPU', undefined, true, /no WebGPU here: update the browser .* chrome:\/\/flags/],
  ['an insecure page', undefined, false, /https or from localhost/],
  [
    'no adapter',
    { requestAdapter: async () => null },
    true,
    /offers no GPU.*--use-webgpu-adapter=swiftshader/,
  ],
])('a browser with %s is told what to do', async (_, gpu, secure, message) => {
  browser(gpu, secure)
  const refused = await openGpu().catch((error) => error)
  vi.unstubAllGlobals()
  expect(refused).toBeInstanceOf(DeviceError)
  expect(refused.message).toMatch(message)
})

test('a driver that resets is named in the errors', async () => {
  let lose: (info: object) => void = () => {}
  const device = {
    features: new Set(),
    limits: {},
    lost: new Promise((resolve) => {
      lose = resolve
    }),
    addEventListener() {},
    destroy() {},
  }
  const info = { vendor: 'acme', architecture: 'one', device: '', description: '' }
  browser({
    requestAdapter: async () => ({
      features: new Set(),
      limits: {},
      info,
      requestDevice: async () => device,
    }),
  })
  const gpu = await openGpu()
  vi.unstubAllGlobals()
  expect(gpu).toMatchObject({
    adapterName: 'acme one',
    isSoftware: false,
    isNode: false,
    immediates: 0,
    timestamps: false,
  })
  const read = gpu.answer('item', new Promise(() => {}))
  lose({ reason: 'unknown', message: 'the driver was reset' })
  await expect(read).rejects.toThrow('item: the GPU was lost (the driver was reset); its tensors are gone')
  expect(gpu.lostInfo).toEqual({ reason: 'unknown', message: 'the driver was reset' })
})
