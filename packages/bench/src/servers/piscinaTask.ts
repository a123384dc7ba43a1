export { answerTo as default } from "../compute.ts"
