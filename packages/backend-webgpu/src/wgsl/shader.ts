/** The frame around a kernel's WGSL: parameters, bindings, entry point. */

import type { Block } from './block.ts'
import type { Element } from './element.ts'

/** What one element of a binding is. Bools are stored as u32, 0 or 1, and two elements of 16 bits as one u32. */
export type Item =
  | Element['item']
  | 'f16'
  | 'vec2<u32>'
  | 'vec4<f16>'
  | 'vec4<f32>'
  | 'vec4<i32>'
  | 'vec4<u32>'
  | 'atomic<u32>'

export interface Binding {
  readonly name: string
  readonly item: Item
  /** Whether the binding is written, and maybe read; one that is not is read only. */
  readonly write?: boolean
}

/** A kernel's code; V are the values that its parameters are given as, `never` where nobody gives any. */
export interface Shader<V = never> {
  readonly params: Block<V>
  readonly bindings: readonly Binding[]
  readonly workgroup: readonly [x: number, y?: number, z?: number]
  /** Everything outside the entry point: functions, `var<workgroup>`, constants. */
  readonly declarations?: string
  /** An array in workgroup memory; kernels that are joined have it in common. */
  readonly shared?: { readonly name: string; readonly item: Item; readonly count: number }
  /**
   * The parameter that counts the workgroups of a kernel on a grid of one dim that one dispatch may do together with
   * another. Such kernels declare only functions and structs, whose members have names of their own. See joined.ts.
   */
  readonly joins?: string
  /**
   * The body of `main`, which sees `p` (parameters), the bindings, `wg` (workgroup_id), `groups` (num_workgroups),
   * `lid` (local_invocation_id) and `li` (local_invocation_index).
   */
  readonly body: string
  /** Extensions to `enable`. */
  readonly enables?: readonly string[]
}

export function shaderCode(shader: Shader): string {
  return `${enabled(shader.enables ?? [])}
${shared(shader.shared)}
${moduleCode(shader, 1, 0)}
${stage('main', shader.body, shader.workgroup)}`
}

export function enabled(names: readonly string[]): string {
  const enables = [...new Set(names)].map((name) => `enable ${name};\n`)
  // Where a subgroup's matrices lie depends on its number: that this is uniform is not proven.
  const rules = [
    ['chromium_experimental_subgroup_matrix', 'chromium.subgroup_matrix_uniformity'],
    ['subgroup_matrix', 'subgroup_matrix_uniformity'],
  ].flatMap(([name, rule]) => (names.includes(name) ? [`diagnostic(off, ${rule});\n`] : []))
  return [...enables, ...rules].join('')
}

/** What a kernel has outside its entry point; buffers are bound from `at` on, parameters at `paramsAt`. */
export function moduleCode({ params, bindings, declarations }: Shader, at: number, paramsAt: number): string {
  const fields = params.fields.length > 0 ? params.fields : ['unused: u32']
  return `struct Params { ${fields.join(', ')} }
@group(0) @binding(${paramsAt}) var<uniform> p: Params;
${bindings
  .map(
    ({ name, item, write }, i) =>
      `@group(0) @binding(${at + i}) var<storage, ${write ? 'read_write' : 'read'}> ${name}: array<${item}>;`,
  )
  .join('\n')}
${declarations ?? ''}`
}

export const shared = (array: Shader['shared']): string =>
  array ? `var<workgroup> ${array.name}: array<${array.item}, ${array.count}>;` : ''

/** A function with a kernel's body: the entry point, if it has a workgroup's size. */
export function stage(name: string, body: string, workgroup?: Shader['workgroup']): string {
  const builtin = (which: string): string => (workgroup ? `@builtin(${which}) ` : '')
  return `${workgroup ? `@compute @workgroup_size(${workgroup.map((n) => n ?? 1).join(', ')})\n` : ''}fn ${name}(
  ${builtin('workgroup_id')}wg: vec3u,
  ${builtin('num_workgroups')}groups: vec3u,
  ${builtin('local_invocation_id')}lid: vec3u,
  ${builtin('local_invocation_index')}li: u32,
) {
${body}
}
`
}
