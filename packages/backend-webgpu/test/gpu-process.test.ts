/** What needs a process of its own: ending with a GPU open, the package or every adapter missing; and bundling. */
import { spawn } from 'node:child_process'
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { type BuildResult, build } from 'esbuild'
import { afterAll, beforeAll, expect, test } from 'vitest'

const here = (path: string) => fileURLToPath(new URL(path, import.meta.url))

/** A folder from which the package webgpu is found, and one from which it is not. */
let [inside, outside] = ['', '']
let bundle: BuildResult<{ write: false; metafile: true }>

beforeAll(async () => {
  await mkdir(here('../node_modules/.cache'), { recursive: true })
  inside = await mkdtemp(here('../node_modules/.cache/test-'))
  outside = await mkdtemp(join(tmpdir(), 'tilegrad-'))
  bundle = await build({
    entryPoints: [here('../src/device/gpu.ts')],
    alias: { '@tilegrad/core': here('../../core/test/support/basics.ts') },
    bundle: true,
    format: 'esm',
    // A browser build fails on any import of a Node module.
    platform: 'browser',
    write: false,
    metafile: true,
  })
  for (const folder of [inside, outside])
    await writeFile(join(folder, 'gpu.mjs'), bundle.outputFiles[0].contents)
})
afterAll(() => Promise.all([inside, outside].map((folder) => rm(folder, { recursive: true }))))

/** Runs a program in a new process: its exit code or signal, and its output. */
async function run(folder: string, program: string, env: Record<string, string> = {}) {
  const file = join(folder, `${Math.random().toString(36).slice(2)}.mjs`)
  await writeFile(file, `import { openGpu } from './gpu.mjs'\n${program}`)
  const child = spawn(process.execPath, [file], { env: { ...process.env, ...env } })
  let output = ''
  for (const stream of [child.stdout, child.stderr])
    stream.on('data', (data) => {
      output += data
    })
  // A process that hangs is killed, and its signal fails the test.
  // Only to end what hangs.
  const timer = setTimeout(() => child.kill('SIGKILL'), 240_000)
  const end = await new Promise((resolve) => child.on('close', (code, signal) => resolve(code ?? signal)))
  clearTimeout(timer)
  return { end, output }
}

const work = `
  const gpu = await openGpu()
  const { device } = gpu
  const code = \`@group(0) @binding(0) var<storage, read_write> y: array<u32>;
    @compute @workgroup_size(64) fn main(@builtin(global_invocation_id) id: vec3u) {
      for (var i = 0u; i < 500u; i++) { y[id.x] = y[id.x] * 3u + i; } }\`
  const pipeline = device.createComputePipeline({
    layout: 'auto', compute: { module: device.createShaderModule({ code }) } })
  const y = device.createBuffer({ size: 1 << 18, usage: 0x84 })
  const read = device.createBuffer({ size: 1 << 18, usage: 0x9 })
  const bindings = device.createBindGroup({
    layout: pipeline.getBindGroupLayout(0), entries: [{ binding: 0, resource: { buffer: y } }] })
  function start() {
    const encoder = device.createCommandEncoder()
    const pass = encoder.beginComputePass()
    pass.setPipeline(pipeline); pass.setBindGroup(0, bindings); pass.dispatchWorkgroups(1024); pass.end()
    encoder.copyBufferToBuffer(y, 0, read, 0, 1 << 18)
    device.queue.submit([encoder.finish()])
    return gpu.answer('read', read.mapAsync(1))
  }
`
test.each([
  ['with a GPU idle', 'await start(); read.unmap(); console.log("last")', 0],
  [
    'with a buffer mapped',
    'await start(); globalThis.mapped = read.getMappedRange(); console.log("last")',
    0,
  ],
  ['when a read comes back', 'start().then(() => console.log("last"))', 0],
  ['after close', 'start().catch(() => console.log("last")); gpu.close()', 0],
  ['by process.exit in the middle of work', 'start(); console.log("last"); process.exit(7)', 7],
  ['by an error in the middle of work', 'start(); console.log("last"); throw new Error("on purpose")', 1],
])('a process ends %s', async (_, program, code) => {
  const { end, output } = await run(inside, work + program)
  expect(output).toContain('last')
  expect(end).toBe(code)
})

test('collected GPUs take nothing down', async () => {
  const program = `
    import { setFlagsFromString } from 'node:v8'
    setFlagsFromString('--expose-gc')
    const gc = (await import('node:vm')).runInNewContext('gc')
    const kept = []
    for (let i = 0; i < 20; i++) {
      const gpu = await openGpu()
      const buffer = gpu.device.createBuffer({ size: 64, usage: 0x9 })
      await gpu.answer('read', buffer.mapAsync(1))
      if (i % 3 === 0) kept.push(buffer)
      if (i % 2 === 0) gpu.close()
      gc()
      await new Promise((resolve) => setTimeout(resolve, 1))
    }
    console.log(kept.length, 'kept')`
  expect(await run(inside, program)).toEqual({ end: 0, output: '7 kept\n' })
})

const refused = `await openGpu().catch((error) => console.log(error.name, error.message))`

test('without the package webgpu the error says how to get it', async () => {
  const { end, output } = await run(outside, refused)
  expect(output).toContain("DeviceError openGpu: the package 'webgpu' is not installed")
  expect(output).toContain('npm i webgpu')
  expect(end).toBe(0)
})

test('a package webgpu that does not load is named with the reason', async () => {
  const folder = join(outside, 'node_modules', 'webgpu')
  await mkdir(folder, { recursive: true })
  await writeFile(join(folder, 'package.json'), '{ "type": "module", "main": "index.js" }')
  await writeFile(join(folder, 'index.js'), 'throw new Error("GLIBCXX_9 not found")')
  const { end, output } = await run(outside, refused)
  await rm(folder, { recursive: true })
  expect(output).toMatch(
    /DeviceError openGpu: the package 'webgpu' does not load on \w+-\w+ \(GLIBCXX_9 not found\)/,
  )
  expect(end).toBe(0)
})

// Elsewhere the driver cannot be hidden from a process.
test.runIf(process.platform === 'linux')('without any adapter the error says what to install', async () => {
  await writeFile(join(outside, 'libvulkan.so.1'), 'no library')
  const { end, output } = await run(inside, refused, { LD_LIBRARY_PATH: outside })
  expect(output).toContain('DeviceError openGpu: there is no GPU that WebGPU can use. Install its driver')
  expect(end).toBe(0)
})

test('bundles for browsers do not contain Dawn', () => {
  const inputs = Object.keys(bundle.metafile.inputs)
  expect(inputs.some((file) => file.endsWith('src/device/gpu.ts'))).toBe(true)
  expect(inputs.filter((file) => file.includes('node_modules'))).toEqual([])
  expect(bundle.warnings).toEqual([])
})
