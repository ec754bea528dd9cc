/**
 * The lines of a stack but those of core, whose folder its first one tells; all, where all is one bundle. The error is to
 * be made in core.
 */
export function originOf(error: Error): string {
  const lines = (error.stack ?? '').split('\n').filter((line) => /:\d+:\d+/.test(line))
  const here = /[^\s(]*\//.exec(lines[0] ?? '')?.[0].replace(/(?:tensor|autograd)\/$/, '')
  const others = lines.filter((line) => here === undefined || !line.includes(here))
  return (others.length > 0 ? others : lines).join('\n')
}

/** Lets stacks have more than the ten frames that V8 shows, as users' code may lie deeper, and returns what ends that. */
export function deepStacks(): () => void {
  const limit: unknown = Reflect.get(Error, 'stackTraceLimit')
  Reflect.set(Error, 'stackTraceLimit', 40)
  return () => void Reflect.set(Error, 'stackTraceLimit', limit)
}
