/**
 * Subgroup matrices, the tensor cores of WebGPU: whether a device multiplies 16 × 16 tiles of float16 and adds up in
 * float32. Adapters say so, but names and forms have changed between versions of Dawn: what counts is that a kernel
 * compiles.
 */

import { enabled } from '../wgsl/shader.ts'

/** What kernels must know to use subgroup matrices. */
export interface Matrices {
  /** The extensions to enable. */
  readonly enables: readonly string[]
  /** The threads of every subgroup. */
  readonly subgroup: number
}

/** A feature and what it is called in WGSL. */
interface Form {
  readonly feature: string
  readonly extension: string
}

/** The names of the feature, in the order in which they are tried. */
export const matrixForms: readonly Form[] = [
  { feature: 'chromium-experimental-subgroup-matrix', extension: 'chromium_experimental_subgroup_matrix' },
  { feature: 'subgroup-matrix', extension: 'subgroup_matrix' },
]

/** What an adapter tells of a form of matrices. */
interface Config {
  readonly componentType: string
  readonly resultComponentType: string
  readonly M: number
  readonly N: number
  readonly K: number
}

/** The extensions for a form. */
export const enablesOfForm = ({ extension }: Form): readonly string[] => ['f16', 'subgroups', extension]

/** Finds out whether a device multiplies such matrices; null if it does not. */
export async function matricesOf(device: GPUDevice, info: GPUAdapterInfo): Promise<Matrices | null> {
  const { subgroupMinSize: least, subgroupMaxSize: most } = info
  const configs = (info as { subgroupMatrixConfigs?: Iterable<Config> }).subgroupMatrixConfigs ?? []
  const fits = [...configs].some(
    (c) =>
      c.componentType === 'f16' && c.resultComponentType === 'f32' && c.M === 16 && c.N === 16 && c.K === 16,
  )
  const features = device.features as ReadonlySet<string>
  // Subgroups of more than one size would need kernels that are told which.
  if (!fits || least !== most || !features.has('shader-f16') || !features.has('subgroups')) return null
  for (const form of matrixForms) {
    const enables = enablesOfForm(form)
    if (features.has(form.feature) && (await compiles(device, probe(enables, least))))
      return { enables, subgroup: least }
  }
  return null
}

async function compiles(device: GPUDevice, code: string): Promise<boolean> {
  device.pushErrorScope('validation')
  const module = device.createShaderModule({ code })
  const made = device.createComputePipelineAsync({ layout: 'auto', compute: { module, entryPoint: 'main' } })
  const pipeline = await made.then(
    () => true,
    () => false,
  )
  return (await device.popErrorScope()) === null && pipeline
}

/** A kernel with every form that products use. */
const probe = (enables: readonly string[], subgroup: number): string =>
  `${enabled(enables)}
@group(0) @binding(0) var<storage, read> a: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read_write> c: array<vec4<u32>>;
var<workgroup> s: array<vec4<u32>, 128>;
@compute @workgroup_size(${subgroup}) fn main(@builtin(local_invocation_index) t: u32) {
s[t] = a[t];
workgroupBarrier();
var sum: subgroup_matrix_result<f32, 16, 16>;
let left = subgroupMatrixLoad<subgroup_matrix_left<f16, 16, 16>, row_major>(&s, 0, 2);
let right = subgroupMatrixLoad<subgroup_matrix_right<f16, 16, 16>, col_major>(&s, 0, 2);
sum = subgroupMatrixMultiplyAccumulate(left, right, sum);
workgroupBarrier();
subgroupMatrixStore<row_major>(&s, 0, sum, 4);
workgroupBarrier();
c[t] = s[t];
}`
