/** The frame around a kernel's WGSL: parameters, bindings, entry point. */

/** What one element of a binding is. Bools are stored as u32, 0 or 1. */
export type Item = 'f32' | 'i32' | 'u32' | 'vec4<f32>' | 'vec4<i32>' | 'vec4<u32>'

export interface Binding {
  readonly name: string
  readonly item: Item
  /** Written, and maybe read; one that is not is read only. */
  readonly write?: boolean
}

export interface Shader {
  /** Names of the parameters in order, each `name: u32`, `i32` or `f32`. */
  readonly params: readonly string[]
  readonly bindings: readonly Binding[]
  readonly workgroup: readonly [x: number, y?: number, z?: number]
  /** Everything outside the entry point: functions, `var<workgroup>`, constants. */
  readonly declarations?: string
  /**
   * The body of `main`, which sees `p` (parameters), the bindings, `wg` (workgroup_id), `groups` (num_workgroups),
   * `lid` (local_invocation_id) and `li` (local_invocation_index).
   */
  readonly body: string
  /** Extensions to `enable`. */
  readonly enables?: readonly string[]
}

export function shaderCode({ params, bindings, workgroup, declarations, body, enables }: Shader): string {
  const fields = params.length > 0 ? params : ['unused: u32']
  return `${(enables ?? []).map((e) => `enable ${e};\n`).join('')}
struct Params { ${fields.join(', ')} }
@group(0) @binding(0) var<uniform> p: Params;
${bindings
  .map(
    ({ name, item, write }, i) =>
      `@group(0) @binding(${i + 1}) var<storage, ${write ? 'read_write' : 'read'}> ${name}: array<${item}>;`,
  )
  .join('\n')}
${declarations ?? ''}
@compute @workgroup_size(${workgroup.map((n) => n ?? 1).join(', ')})
fn main(
  @builtin(workgroup_id) wg: vec3u,
  @builtin(num_workgroups) groups: vec3u,
  @builtin(local_invocation_id) lid: vec3u,
  @builtin(local_invocation_index) li: u32,
) {
${body}
}
`
}
