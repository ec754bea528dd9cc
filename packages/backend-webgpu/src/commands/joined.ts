/**
 * Two kernels as one, side by side: the first workgroups do what the one does, the others what the other does. The calls
 * of a dispatch take microseconds, and small steps wait for nothing else. In the backward pass of a product two small
 * ones follow each other, dy · w and dyᵀ · x, neither of which needs the other; a training step has dozens.
 *
 * The engine joins dispatches as they come. Kernels that allow it (`Shader.joins`) are compiled when they first run by
 * themselves: maybe they never do. Test: joined.test.ts.
 */

import type { GpuBuffer } from '../device/buffers.ts'
import { enabled, moduleCode, type Shader, shared, stage } from '../wgsl/shader.ts'

/** Do they go together, where so many buffers can be bound? */
export function canJoin(first: Shader, second: Shader, mostBindings: number): boolean {
  const [a, b] = [first.shared, second.shared]
  return (
    String(first.workgroup) === String(second.workgroup) &&
    first.bindings.length + second.bindings.length <= mostBindings &&
    (!a || !b || (a.name === b.name && a.item === b.item))
  )
}

/** Does neither write what the other uses? */
export function independent(
  { bindings: mine }: Shader,
  itsBuffers: readonly GpuBuffer[],
  { bindings }: Shader,
  buffers: readonly GpuBuffer[],
): boolean {
  for (let i = 0; i < itsBuffers.length; i++)
    for (let j = 0; j < buffers.length; j++)
      if (itsBuffers[i] === buffers[j] && (mine[i]?.write || bindings[j]?.write)) return false
  return true
}

/** The code of both. Bindings: the first's parameters and buffers, the second's buffers and parameters. */
export function joinedCode(first: Shader, second: Shader): string {
  const at = first.bindings.length + 1
  const names = ['Params', 'p', 'main', ...second.bindings.map(({ name }) => name)]
  for (const [, name] of (second.declarations ?? '').matchAll(/\b(?:fn|struct) (\w+)/g))
    names.push(name as string)
  // Not after a dot: those are members.
  const own = new RegExp(`(?<![.\\w])(?=(?:${names.join('|')})\\b)`, 'g')
  const code = `${moduleCode(second, at, at + second.bindings.length)}\n${stage('main', second.body)}`
  // One array for both: with two, a core would have room for fewer workgroups.
  const [a, b] = [first.shared, second.shared]
  return `${enabled([...(first.enables ?? []), ...(second.enables ?? [])])}
${shared((a?.count ?? 0) >= (b?.count ?? 0) ? a : b)}
${moduleCode(first, 1, 0)}
${stage('first_main', first.body)}
${code.replace(own, 'second_')}
${stage(
  'main',
  `let cut = u32(p.${first.joins});
if (wg.x < cut) { first_main(wg, vec3u(cut, 1, 1), lid, li); }
else { second_main(vec3u(wg.x - cut, 0, 0), vec3u(groups.x - cut, 1, 1), lid, li); }`,
  first.workgroup,
)}`
}
