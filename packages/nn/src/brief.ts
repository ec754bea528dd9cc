/** The most characters that a value from a file takes in a message. */
const longest = 60

const cut = (text: string): string => (text.length > longest ? `${text.slice(0, longest)}…` : text)

/** A name that was read from a file, for a message: in quotes and short. @internal */
export const quoted = (name: string): string => `'${cut(name.slice(0, longest + 1))}'`

/**
 * A value that was read from a file, as JSON, for a message: whatever it is, the text is short and made at once. What is
 * nested deeper than two levels, and what comes after the first few entries, is an ellipsis.
 *
 * @internal
 */
export function brief(value: unknown, depth = 0): string {
  if (typeof value === 'string') return cut(JSON.stringify(value.slice(0, longest + 1)))
  if (typeof value !== 'object' || value === null) return cut(String(value))
  const list = Array.isArray(value)
  const [open, close] = list ? '[]' : '{}'
  if (depth === 2) return `${open}…${close}`
  const parts: string[] = []
  // Not Object.entries: that would make as many pairs as there are.
  for (const key in value) {
    if (parts.length === 8) {
      parts.push('…')
      break
    }
    const part = brief((value as Record<string, unknown>)[key], depth + 1)
    parts.push(list ? part : `${brief(key)}:${part}`)
  }
  return depth === 0 ? cut(`${open}${parts.join(',')}${close}`) : `${open}${parts.join(',')}${close}`
}
