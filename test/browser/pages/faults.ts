/** What must fail a test: errors on the console, exceptions nobody catches, a `run` that throws or never ends. */
export async function run(kind: string): Promise<string> {
  if (kind === 'console') console.error('written on purpose')
  if (kind === 'uncaught') setTimeout(() => Promise.reject(new Error('rejected on purpose')))
  if (kind === 'throw') throw new Error('thrown on purpose')
  if (kind === 'hang') await new Promise(() => {})
  await new Promise((resolve) => setTimeout(resolve, 50))
  return 'came to its end'
}
