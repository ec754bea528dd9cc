// Runs a lesson: npm run lesson -- NAME
const lessons: Readonly<Record<string, () => Promise<{ main(): Promise<unknown> }>>> = {
  moons: () => import('./moons.ts'),
  makemore: () => import('./makemore.ts'),
  gpt: () => import('./gpt.ts'),
  'annotated-transformer': () => import('./annotated-transformer.ts'),
  'char-lstm': () => import('./char-lstm.ts'),
  vit: () => import('./vit.ts'),
  nanogpt: () => import('./nanogpt.ts'),
}
const [name = ''] = process.argv.slice(2).filter((a) => a !== '--')
const load = Object.hasOwn(lessons, name) ? lessons[name] : undefined
if (load) await (await load()).main()
else {
  if (name) console.error(`There is no lesson '${name}' to run.`)
  console.error(`usage: npm run lesson -- NAME, where NAME is one of ${Object.keys(lessons).join(', ')}`)
  process.exitCode = 2
}
