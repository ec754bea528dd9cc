/** Opens the GPU and runs a shader in a page: y = x² + 1. */
import { openGpu } from '@tilegrad/backend-webgpu'

export async function run(x: number[]) {
  const gpu = await openGpu()
  const { device } = gpu
  const size = x.length * 4
  const module = device.createShaderModule({
    code: `
      @group(0) @binding(0) var<storage, read_write> y: array<f32>;
      @compute @workgroup_size(64) fn main(@builtin(global_invocation_id) id: vec3u) {
        if (id.x < arrayLength(&y)) { y[id.x] = y[id.x] * y[id.x] + 1; }
      }`,
  })
  const pipeline = device.createComputePipeline({ layout: 'auto', compute: { module } })
  const { STORAGE, COPY_SRC, COPY_DST, MAP_READ } = GPUBufferUsage
  const y = device.createBuffer({ size, usage: STORAGE | COPY_SRC | COPY_DST })
  const read = device.createBuffer({ size, usage: MAP_READ | COPY_DST })
  device.queue.writeBuffer(y, 0, new Float32Array(x))
  const encoder = device.createCommandEncoder()
  const pass = encoder.beginComputePass()
  pass.setPipeline(pipeline)
  const entries = [{ binding: 0, resource: { buffer: y } }]
  pass.setBindGroup(0, device.createBindGroup({ layout: pipeline.getBindGroupLayout(0), entries }))
  pass.dispatchWorkgroups(Math.ceil(x.length / 64))
  pass.end()
  encoder.copyBufferToBuffer(y, 0, read, 0, size)
  device.queue.submit([encoder.finish()])
  await gpu.answer('read', read.mapAsync(GPUMapMode.READ))
  const result = [...new Float32Array(read.getMappedRange())]
  const { adapterName, isSoftware, isNode, immediates, timestamps } = gpu
  const features = [...gpu.features]
  const workgroup = gpu.limits.maxComputeWorkgroupStorageSize
  gpu.close()
  const { reason } = await gpu.lost
  return {
    y: result,
    ...{ adapterName, isSoftware, isNode, immediates, timestamps, features, workgroup, reason },
    isolated: crossOriginIsolated,
    shared: typeof SharedArrayBuffer,
  }
}
